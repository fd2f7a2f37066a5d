"""The embedded model under a real Triton, with each of its engines."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton
from google.protobuf.json_format import MessageToDict

import xray_build
from benchmarks.load_settings import Published, Setting
from tests.helpers.commands import Built
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import INT8_FILE, INT8_WEIGHTS_FILE, ONNX_FILE
from xray_build.backends.embedded import threads as threads_code
from xray_build.engines.runtime import openvino_session, run_onnx, run_openvino
from xray_build.repository.model_config import model_config
from xray_build.repository.publish import staged_version
from xray_build.triton.server import TritonServer
from xray_client import Preprocessing, XrayClient, XrayError, contract, load_radiograph

pytestmark = pytest.mark.slow

PARAMETER = 'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


@pytest.fixture(scope="module")
def served(built: Built, preprocessing: Preprocessing, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the built artefacts as version 1."""
    repository = tmp_path_factory.mktemp("engines")
    with staged_version(repository) as stage:
        for name in (ONNX_FILE, INT8_FILE, INT8_WEIGHTS_FILE):
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
    served: Path, built: Built, twenty_radiographs: Path, preprocessing: Preprocessing, engine: str
) -> None:
    name = configured(served, f"with-{engine}", engine=engine, threads="1")
    paths = sorted((twenty_radiographs / "train" / "PNEUMONIA").iterdir())[:9]
    images = np.stack([load_radiograph(path.read_bytes(), preprocessing) for path in paths])
    with TritonServer(served, config_name=name, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        answer = client.classify(paths[0])
        together = ask(server.url, images)  # more than it computes at a time, and one over
    expected = (
        run_openvino(built.folder / INT8_FILE, images, batch=1)
        if engine == "openvino-int8"
        else run_onnx(built.folder / ONNX_FILE, images, batch=1)
    )
    assert answer.probability == pytest.approx(float(expected["probability"][0, 1]), abs=1e-4)
    assert answer.novelty == pytest.approx(float(expected["novelty"][0, 0]), rel=1e-3)
    np.testing.assert_allclose(answer.heatmap, expected["heatmap"][0], atol=1e-3)
    for output in ("probability", "heatmap"):
        np.testing.assert_allclose(together[output], expected[output], atol=1e-3)


def ask(url: str, images: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs of several prepared images in one request."""
    tensor = triton.InferInput(contract.IMAGE, images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    with triton.InferenceServerClient(url) as client:
        answer = client.infer(contract.MODEL_NAME, [tensor], client_timeout=60)
    return {name: answer.as_numpy(name) for name in contract.OUTPUTS}


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


@pytest.mark.parametrize("loader", ["server", "comparison"])
def test_instances_of_openvino_are_not_bound_to_the_same_cores(
    loader: str, built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino = pytest.importorskip("openvino")
    compile_model, compiled = openvino.Core.compile_model, []

    def kept(*given: object) -> object:
        compiled.append(compile_model(*given))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", kept)
    artefact = built.folder / ONNX_FILE
    if loader == "server":
        embedded_model(monkeypatch)._openvino(artefact, contract.IMAGE, 1)
    else:
        openvino_session(artefact, threads=1)
    assert not compiled[0].get_property("ENABLE_CPU_PINNING")


def test_the_end_of_a_child_process_does_not_end_one_that_has_used_openvino(built: Built) -> None:
    """With an OpenVINO for each session it does: the last one to go leaves the next signal a stack that is unmapped."""
    pytest.importorskip("openvino")
    code = (
        "import signal, subprocess, sys; from pathlib import Path\n"
        "from xray_build.engines.runtime import openvino_session\n"
        "sessions = [openvino_session(Path(sys.argv[1])) for _ in range(2)]; del sessions[0]; del sessions[0]\n"
        "signal.signal(signal.SIGCHLD, lambda *_: print('survived')); subprocess.run(['true'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, built.folder / ONNX_FILE], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


@pytest.mark.parametrize(("instances", "spinning"), [(1, "1"), (2, "0")])
@pytest.mark.parametrize("loader", ["server", "comparison"])
def test_threads_spin_only_where_each_has_a_core(
    loader: str, instances: int, spinning: str, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, *given: object, **named: object) -> None:
            super().__init__(*given, **named)
            opened.append(self.get_session_options())

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    published = Published.find("built", served)
    setting = Setting("all cores each", {"instances": instances, "threads": len(os.sched_getaffinity(0))})
    engine = setting.apply(published.engine)
    if loader == "server":
        config = MessageToDict(
            model_config(engine, published.serving),
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,  # as Triton writes it
        )
        given = {"model_config": json.dumps(config), "model_repository": str(served / "medclip"), "model_version": "1"}
        embedded_model(monkeypatch).TritonPythonModel().initialize(given | {"model_name": ".a trial's, not counted"})
    else:
        replace(published, engine=engine).sessions()
    found = {options.get_session_config_entry("session.intra_op.allow_spinning") for options in opened}
    assert found == {spinning}


def embedded_model(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Load the model's code into this process, without Triton's own modules."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "counting", SimpleNamespace(TENSORS=(), Answers=None, holds_radiographs=None))
    monkeypatch.setitem(sys.modules, "threads", threads_code)
    spec = importlib.util.spec_from_file_location(
        "embedded_model", Path(xray_build.__path__[0], "backends/embedded/model.py")
    )
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    return model


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
    (repository / "medclip" / "1" / INT8_FILE).unlink()
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
