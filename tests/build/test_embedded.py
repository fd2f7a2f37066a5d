"""The embedded model under a real Triton, with each of its engines."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import Built
from small_graph import publish_small

from xray_build.bench_settings import Published, Setting
from xray_build.engines import run_onnx, run_openvino
from xray_build.publish import staged_version
from xray_build.server import TritonServer
from xray_client import Preprocessing, XrayClient, XrayError, load_radiograph

pytestmark = pytest.mark.slow

PARAMETER = 'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


@pytest.fixture(scope="module")
def served(built: Built, preprocessing: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the built artefacts as version 1."""
    repository = tmp_path_factory.mktemp("engines")
    with staged_version(repository) as stage:
        for name in ("model.onnx", "model_int8.xml", "model_int8.bin"):
            shutil.copyfile(built.folder / name, stage.folder / name)
        stage.publish(preprocessing=preprocessing, about={})
    return repository


def configured(repository: Path, name: str, **parameters: str) -> str:
    """Add a configuration: the embedded one with other parameters; returns its name."""
    configs = repository / "medclip" / "configs"
    more = "".join(PARAMETER.format(key=key, value=value) for key, value in parameters.items())
    (configs / f"{name}.pbtxt").write_text((configs / "embedded.pbtxt").read_text() + more)
    return name


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "openvino-int8"])
def test_each_engine_answers_as_its_artefact_does_in_process(
    served: Path, built: Built, real_data: Path, preprocessing: Preprocessing, engine: str
) -> None:
    name = configured(served, f"with-{engine}", engine=engine, threads="1")
    path = next((real_data / "chest_xray_224" / "val" / "PNEUMONIA").iterdir())
    with TritonServer(served, config_name=name, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        answer = client.classify(path)
    image = load_radiograph(path.read_bytes(), preprocessing)[None]
    expected = (
        run_openvino(built.folder / "model_int8.xml", image, batch=1)
        if engine == "openvino-int8"
        else run_onnx(built.folder / "model.onnx", image, batch=1)
    )
    assert answer.probability == pytest.approx(float(expected["probability"][0, 1]), abs=1e-4)
    assert answer.novelty == pytest.approx(float(expected["novelty"][0, 0]), rel=1e-3)
    np.testing.assert_allclose(answer.heatmap, expected["heatmap"][0], atol=1e-3)


def test_instances_share_the_cores_unless_told_otherwise(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        pytest.skip("one core cannot be shared")
    publish_small(tmp_path / "repository")
    published, counts = Published.find("small", tmp_path / "repository"), {}
    for instances, threads in ((1, 0), (2, 0), (2, cores // 2)):
        setting = Setting("share", {"instances": instances, "threads": threads})
        with published.served_as(setting, tmp_path / "log", models=["medclip"]) as server:
            counts[instances, threads] = threads_of_instances(server.pid)
    assert len(counts[1, 0]) == 1
    assert len(counts[2, 0]) == 2
    assert counts[2, 0] == counts[2, cores // 2]
    assert counts[2, 0][0] < counts[1, 0][0]


def threads_of_instances(group: int) -> list[int]:
    """Threads of each stub of a server, with those of its engine."""
    stubs = [
        folder
        for folder in Path("/proc").glob("[0-9]*")
        if b"triton_python_backend_stub" in read(folder / "cmdline") and os.getpgid(int(folder.name)) == group
    ]
    return sorted(len(list((stub / "task").iterdir())) for stub in stubs)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # that process has ended
        return b""


def test_an_unknown_engine_and_a_missing_artefact_are_named(served: Path, tmp_path: Path) -> None:
    shutil.copytree(served, tmp_path / "repository")
    repository = tmp_path / "repository"
    (repository / "medclip" / "1" / "model_int8.xml").unlink()
    for name, engine, words in (
        ("unknown", "tflite", "engine 'tflite' is none of onnxruntime, openvino, openvino-int8"),
        ("missing", "openvino-int8", "version 1 has no model_int8.xml, which engine 'openvino-int8' runs"),
    ):
        config = configured(repository, name, engine=engine)
        with (
            pytest.raises(XrayError, match=words),
            TritonServer(repository, config_name=config, port=0, metrics_port=0),
        ):
            pass
