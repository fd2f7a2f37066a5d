"""Publication: complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.helpers.small_graph import publish_small, write_small_graph
from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    COUNTING_CODE_FILE,
    KNOWN_ANSWERS_FILE,
    MANIFEST_FILE,
    MODEL_CODE_FILE,
    ONNX_FILE,
    PLAN_FILE,
    THREADS_CODE_FILE,
    VERSION_LOG_FILE,
)
from xray_build.errors import BuildError
from xray_build.repository.configurations import served
from xray_build.repository.known_answers import KnownAnswers
from xray_build.repository.publish import rollback, staged_version, versions
from xray_build.repository.verify import verify
from xray_build.repository.versions import read_manifest
from xray_client import Preprocessing, contract

ROOT = Path(__file__).resolve().parents[3]
PUBLISH = (
    "import sys; from pathlib import Path; from tests.helpers.small_graph import publish_small; "
    "publish_small(Path(sys.argv[1]))"
)


def _hidden(repository: Path) -> set[str]:
    return {path.name for path in repository.rglob(".*")}


def test_versions_count_up_and_are_complete(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        publication = publish_small(tmp_path)
        assert publication.version == expected
        assert {path.name for path in publication.folder.iterdir()} == {
            ONNX_FILE,
            MODEL_CODE_FILE,
            COUNTING_CODE_FILE,
            THREADS_CODE_FILE,
            KNOWN_ANSWERS_FILE,
            MANIFEST_FILE,
        }
    assert versions(tmp_path) == [1, 2, 3]
    assert set(served(tmp_path).values()) == {3}
    assert _hidden(tmp_path) == {".lock"}


def test_the_manifest_has_the_hash_of_every_file_and_what_is_known_of_the_model(tmp_path: Path) -> None:
    with staged_version(tmp_path) as stage:
        write_small_graph(stage.folder / ONNX_FILE)
        (stage.folder / PLAN_FILE).write_bytes(b"bytes of a plan")
        (stage.folder / BUILD_RECORD_FILE).write_text('{"steps": [{"name": "plan", "tensorrt": "10.13.2"}]}')
        folder = stage.publish(
            preprocessing=Preprocessing(geometry="pad"), about={"note": "test", "model": "other"}
        ).folder
    manifest = read_manifest(folder)
    assert set(manifest["files"]) == {
        ONNX_FILE,
        PLAN_FILE,
        BUILD_RECORD_FILE,
        MODEL_CODE_FILE,
        COUNTING_CODE_FILE,
        THREADS_CODE_FILE,
        KNOWN_ANSWERS_FILE,
    }
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert manifest["preprocessing"] == {"size": 224, "geometry": "pad", "interpolation": "bicubic", "version": 2}
    assert (manifest["note"], manifest["model"]) == ("test", "medclip"), "what is told cannot overwrite what is known"
    assert manifest["build"]["steps"][0]["tensorrt"] == "10.13.2"
    assert "Not a medical device" in manifest["notice"]


def test_a_version_knows_the_answers_of_its_own_graph(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 224, 224), dtype=np.uint8)
    folder = publish_small(tmp_path, images=images).folder
    known = KnownAnswers.load(folder)
    np.testing.assert_array_equal(known.images, images[:2])
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE))
    for name, values in zip(contract.OUTPUTS, session.run(list(contract.OUTPUTS), {"image": images[:2]}), strict=True):
        np.testing.assert_array_equal(known.answers[name], values)


def test_radiographs_of_the_build_are_taken_and_else_a_chest_is_drawn(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 224, 224), dtype=np.uint8)
    with staged_version(tmp_path) as stage:
        write_small_graph(stage.folder / ONNX_FILE)
        np.savez(stage.folder / KNOWN_ANSWERS_FILE, image=image)
        folder = stage.publish(preprocessing=Preprocessing(), about={}).folder
    np.testing.assert_array_equal(KnownAnswers.load(folder).images, image)
    drawn = KnownAnswers.load(publish_small(tmp_path).folder).images
    assert drawn.shape == image.shape
    assert drawn.std() > 20, "something is drawn"


def test_what_engines_are_warmed_up_with_is_there_before_the_version(tmp_path: Path) -> None:
    image = np.full((1, 1, 224, 224), 7, np.uint8)
    publish_small(tmp_path, images=image)
    assert (tmp_path / "medclip" / "warmup" / "radiograph-224.raw").read_bytes() == image.tobytes()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / ONNX_FILE).unlink(), "a version needs model.onnx"),
        (lambda folder: (folder / ONNX_FILE).write_bytes(b"no graph"), "does not run"),
        (lambda folder: write_small_graph(folder / ONNX_FILE, temperature=0), "not finite"),
        (lambda folder: (folder / BUILD_RECORD_FILE).write_text("{"), "build.json: cannot be read"),
        (lambda folder: (folder / KNOWN_ANSWERS_FILE).write_bytes(b"no archive"), "known.npz: cannot be read"),
        (
            lambda folder: np.savez(folder / KNOWN_ANSWERS_FILE, image=np.zeros((1, 1, 8, 8), np.uint8)),
            "known radiographs are",
        ),
    ],
)
def test_a_version_that_cannot_answer_is_not_published(tmp_path: Path, spoil, says: str) -> None:
    publish_small(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def publish() -> None:
        with staged_version(tmp_path) as stage:
            write_small_graph(stage.folder / ONNX_FILE)
            spoil(stage.folder)
            stage.publish(preprocessing=Preprocessing(), about={})

    with pytest.raises(BuildError, match=says):
        publish()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_builds_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    with staged_version(tmp_path) as slow:
        write_small_graph(slow.folder / ONNX_FILE)
        assert publish_small(tmp_path).version == 1
        assert (slow.folder / ONNX_FILE).exists(), "what another build stages is not a leftover"
        assert slow.publish(preprocessing=Preprocessing(), about={}).version == 2


def test_publishers_in_threads_and_processes_get_numbers_of_their_own(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen([sys.executable, "-c", PUBLISH, str(tmp_path)], env=environment) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: publish_small(tmp_path), range(6)))
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert versions(tmp_path) == list(range(1, 10))
    assert all(verify(tmp_path, version).sound for version in versions(tmp_path))


def test_a_lock_that_is_never_given_back_is_an_error_that_says_so(tmp_path: Path, monkeypatch) -> None:
    from xray_build.repository import publish
    from xray_build.repository.atomic import locked

    monkeypatch.setattr(publish, "LOCK_WAIT_S", 0.2)
    (tmp_path / "medclip").mkdir()
    with locked(tmp_path / "medclip", wait_s=0), pytest.raises(BuildError, match=r"publishing here for 0\.2 s"):
        publish_small(tmp_path)


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    for _ in range(3):
        publish_small(tmp_path)
    shutil.rmtree(tmp_path / "medclip" / "3")
    assert publish_small(tmp_path).version == 4
    rollback(tmp_path, to=2)
    shutil.rmtree(tmp_path / "medclip" / "4")
    assert publish_small(tmp_path).version == 5


def test_a_rollback_goes_to_the_newest_that_was_not_withdrawn(tmp_path: Path) -> None:
    for _ in range(3):
        publish_small(tmp_path)
    assert rollback(tmp_path) == 2
    assert set(served(tmp_path).values()) == {2}
    publish_small(tmp_path)
    assert set(served(tmp_path).values()) == {4}, "the next publication is served in its turn"
    assert rollback(tmp_path) == 2, "version 3 was withdrawn"
    assert rollback(tmp_path, to=4) == 4, "forward again"
    assert rollback(tmp_path, to=1) == 1
    with pytest.raises(BuildError, match="no version to go back to"):
        rollback(tmp_path)
    with pytest.raises(BuildError, match=r"no version 9 \(it has 1, 2, 3, 4\)"):
        rollback(tmp_path, to=9)


def test_a_rollback_brings_the_preprocessing_along_and_forward_to_the_newest_leaves_no_trace(tmp_path: Path) -> None:
    publish_small(tmp_path, geometry="stretch")
    publish_small(tmp_path, geometry="pad")
    config = tmp_path / "medclip" / "configs" / "embedded.pbtxt"
    before = config.read_text()
    rollback(tmp_path)
    assert "stretch" in config.read_text()
    assert "versions: [1]" in config.read_text()
    rollback(tmp_path, to=2)
    assert config.read_text() == before


def test_a_version_whose_files_were_changed_is_not_gone_back_to(tmp_path: Path) -> None:
    folder = publish_small(tmp_path).folder
    publish_small(tmp_path)
    write_small_graph(folder / ONNX_FILE, temperature=3)
    with pytest.raises(BuildError, match="not what was published"):
        rollback(tmp_path)
    assert set(served(tmp_path).values()) == {2}


def test_a_failed_build_leaves_the_live_versions_and_nothing_else(tmp_path: Path) -> None:
    publish_small(tmp_path)
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def fail() -> None:
        with staged_version(tmp_path) as stage:
            (stage.folder / ONNX_FILE).write_bytes(b"half")
            raise RuntimeError("parity")

    with pytest.raises(RuntimeError, match="parity"):
        fail()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_repository_that_may_only_be_read_is_named_and_can_still_be_verified() -> None:
    """By a process that is not root, to whom nothing would be refused."""
    code = (
        "import os, sys; from pathlib import Path; from tests.helpers.small_graph import publish_small\n"
        "from xray_build.repository.verify import verify\n"
        "verify(Path(sys.argv[1]))  # Python's own files may be root's alone: have them loaded\n"
        "os.geteuid() or os.setuid(65534)\n"
        "assert verify(Path(sys.argv[1])).sound\n"
        "publish_small(Path(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        publish_small(repository)
        repository.chmod(0o555)
        (repository / "medclip").chmod(0o555)
        (repository / "medclip" / ".lock").chmod(0o444)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True)
        (repository / "medclip").chmod(0o755)
    last = done.stderr.splitlines()[-1]
    assert re.search(r"BuildError: .*medclip.*: cannot be written: Permission denied \(run as its owner", last), last


def test_a_repository_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="cannot be written") as caught:
        publish_small(tmp_path / "file")
    assert str(tmp_path) in str(caught.value)


def test_a_history_that_was_damaged_is_named(tmp_path: Path) -> None:
    publish_small(tmp_path)
    (tmp_path / "medclip" / VERSION_LOG_FILE).write_text(json.dumps({"highest": "many"}))
    with pytest.raises(BuildError, match=r"versions\.json: cannot be read"):
        publish_small(tmp_path)
