"""Checks of a version before a server loads it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.helpers.small_graph import publish_small, write_small_graph
from xray_build.artefacts import BUILD_RECORD_FILE, KNOWN_ANSWERS_FILE, LABELS_FILE, MANIFEST_FILE, ONNX_FILE, PLAN_FILE
from xray_build.errors import BuildError
from xray_build.repository.plan_compatibility import Machine
from xray_build.repository.publish import rollback, staged_version
from xray_build.repository.verify import verify
from xray_client import Preprocessing

BUILT_ON = Machine(tensorrt="10.13.2", cuda="13.0", gpu="NVIDIA L4", compute_capability="8.9")
STEP = {
    "name": "plan",
    "artefacts": [],
    "details": {
        "tensorrt": "10.13.2",
        "gpu": {"name": "NVIDIA L4", "compute_capability": "8.9", "cuda": "13.0"},
        "options": {"min_batch": 1, "opt_batch": 8, "max_batch": 32},
    },
}


def _wrong(repository: Path, version: int | None = None, **options) -> str:
    """The serious problems, a line each."""
    checked = verify(repository, version, machine=options.pop("machine", Machine()), **options)
    return "\n".join(f"{problem.source}: {problem.message}" for problem in checked.problems if problem.serious)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Version 1, sound, without a plan."""
    publish_small(tmp_path)
    return tmp_path


@pytest.fixture
def with_plan(tmp_path: Path) -> Path:
    """Version 1 with what stands for a plan: nothing here reads it, only the record of its build."""
    with staged_version(tmp_path) as stage:
        write_small_graph(stage.folder / ONNX_FILE)
        (stage.folder / PLAN_FILE).write_bytes(b"bytes of a plan")
        (stage.folder / BUILD_RECORD_FILE).write_text(json.dumps({"steps": [STEP]}))
        stage.publish(preprocessing=Preprocessing(geometry="stretch"), about={})
    return tmp_path


def test_a_version_as_it_was_published_is_sound(repository: Path) -> None:
    checked = verify(repository, machine=BUILT_ON)
    assert checked.sound
    assert checked.version == 1
    assert [problem.message for problem in checked.problems] == [
        "version 1 has no model.plan, so engine tensorrt cannot serve it"
    ]


def test_the_served_version_is_looked_at_unless_another_is_named(repository: Path) -> None:
    publish_small(repository)
    assert verify(repository).version == 2
    rollback(repository)
    assert verify(repository).version == 1
    assert verify(repository, 2).version == 2
    with pytest.raises(BuildError, match="there is no version 7"):
        verify(repository, 7)


def _edit_manifest(folder: Path, **values) -> None:
    path = folder / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda v: write_small_graph(v / ONNX_FILE, temperature=9), r"model\.onnx: is not what was published"),
        (lambda v: (v / KNOWN_ANSWERS_FILE).unlink(), r"known\.npz: is missing"),
        (lambda v: (v / PLAN_FILE).write_bytes(b"brought along"), r"model\.plan: was not published"),
        (lambda v: (v / MANIFEST_FILE).write_text("{"), "the manifest cannot be read"),
        (lambda v: (v / MANIFEST_FILE).unlink(), "the manifest cannot be read"),
        (lambda v: _edit_manifest(v, labels=["Pneumonia", "Normal"]), "labels"),
        (lambda v: _edit_manifest(v, preprocessing={"size": 224, "geometry": "crop"}), "cannot be done here"),
        (lambda v: _edit_manifest(v, preprocessing={"size": 224, "geometry": "pad"}), "publish again"),
        (lambda v: _edit_manifest(v, manifest_version=99), "manifest version 99"),
        (lambda v: shutil.rmtree(v.parent / "warmup"), "missing or cut short"),
        (lambda v: (v.parent / LABELS_FILE).write_text("Pneumonia\nNormal\n"), r"labels\.txt"),
    ],
)
def test_whatever_was_changed_afterwards_is_named(repository: Path, harm, says: str) -> None:
    harm(repository / "medclip" / "1")
    assert re.search(says, _wrong(repository))


def test_a_configuration_that_is_none_is_named(repository: Path) -> None:
    (repository / "medclip" / "configs" / "onnx.pbtxt").write_text("max_batch_sise: 4")
    with pytest.raises(BuildError, match=r"onnx\.pbtxt: not a Triton model configuration.*max_batch_sise"):
        verify(repository)


def test_an_engine_that_lacks_its_artefact_is_wrong_where_it_is_to_serve(repository: Path) -> None:
    assert _wrong(repository, engine="onnx") == ""
    assert "has no model.plan" in _wrong(repository, engine="tensorrt")


def test_a_plan_fits_the_machine_that_built_it_and_newer_drivers(with_plan: Path) -> None:
    assert _wrong(with_plan, machine=BUILT_ON, engine="tensorrt") == ""
    assert _wrong(with_plan, machine=Machine("10.13.2", "14.1", "NVIDIA L4", "8.9"), engine="tensorrt") == ""


@pytest.mark.parametrize(
    ("machine", "says"),
    [
        (
            Machine("10.14.1", "13.0", "NVIDIA L4", "8.9"),
            "was built for TensorRT 10.13.2, this machine has 10.14.1: build the plan again inside the container",
        ),
        (Machine("10.13.2", "12.9", "NVIDIA L4", "8.9"), "was built for CUDA 13.0, this machine has 12.9"),
        (
            Machine("10.13.2", "13.0", "NVIDIA H100", "9.0"),
            "was built for compute capability 8.9 (NVIDIA L4), this machine has 9.0 (NVIDIA H100)",
        ),
        (Machine("", "13.0", "NVIDIA L4", "8.9"), "was built for TensorRT 10.13.2, this machine has none"),
    ],
)
def test_a_plan_for_another_machine_is_refused_and_the_mismatch_named(
    with_plan: Path, machine: Machine, says: str
) -> None:
    wrong = _wrong(with_plan, machine=machine)
    assert says in wrong
    assert len(wrong.splitlines()) == 1
    assert _wrong(with_plan, machine=machine, engine="onnx") == "", "the graph can be served there all the same"


def test_without_a_gpu_a_plan_is_noted_unless_it_is_to_serve_here(with_plan: Path) -> None:
    checked = verify(with_plan, machine=Machine())
    assert checked.sound
    (note,) = checked.problems
    assert "built by TensorRT 10.13.2 for NVIDIA L4" in note.message
    assert "no GPU" in note.message
    assert "this machine has none" in _wrong(with_plan, machine=Machine(), engine="tensorrt")


def test_a_plan_for_smaller_batches_than_the_configuration_asks_for_is_refused(with_plan: Path) -> None:
    path = with_plan / "medclip" / "config.pbtxt"
    path.write_text(path.read_text().replace("max_batch_size: 32", "max_batch_size: 64"))
    assert "asks for batches of 64, the plan takes 32" in _wrong(with_plan, machine=BUILT_ON)


def test_a_plan_of_unknown_origin_is_refused(tmp_path: Path) -> None:
    with staged_version(tmp_path) as stage:
        write_small_graph(stage.folder / ONNX_FILE)
        (stage.folder / PLAN_FILE).write_bytes(b"bytes of a plan")
        stage.publish(preprocessing=Preprocessing(geometry="stretch"), about={})
    assert "does not say what it was built for" in _wrong(tmp_path, machine=BUILT_ON)


def test_this_machine_is_asked_and_says_nothing_of_a_gpu_that_it_does_not_have() -> None:
    here = Machine.here()
    assert bool(here.gpu) == bool(here.compute_capability) == bool(here.cuda)
    if not Path("/proc/driver/nvidia").exists():
        assert here.gpu == ""
