"""Callers without any package of ours or NVIDIA's: plain grpcio with generated stubs, and Node.js, on a real Triton."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2

from tests.helpers.small_graph import publish_small
from xray_build.triton.server import TritonServer
from xray_client import Prediction, XrayClient

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("protocol") / "model_repository"
    publish_small(repository)
    with TritonServer(repository, port=0, metrics_port=0) as server:
        yield server.url


@pytest.fixture(scope="module")
def files(twenty_radiographs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A radiograph of either class, and one that is none."""
    bad = tmp_path_factory.mktemp("files") / "bad.png"
    bad.write_bytes(b"no image")
    return [*sorted(twenty_radiographs.rglob("*.jpeg"))[::10], bad]


@pytest.fixture(scope="module")
def protos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Triton's public .proto files."""
    folder = tmp_path_factory.mktemp("protocol") / "protos"
    subprocess.run([sys.executable, EXAMPLES / "protos.py", folder], check=True)
    return folder


def protoc(protos: Path, *options: str) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools generates stubs: pip install 'medclip-triton[dev]'")
    files = ["grpc_service.proto", "model_config.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", *options, *files], check=True)


@pytest.fixture(scope="module")
def stubs(protos: Path) -> Path:
    """Python stubs generated from them by protoc."""
    folder = protos.parent / "stubs"
    folder.mkdir()
    protoc(protos, f"--python_out={folder}", f"--grpc_python_out={folder}")
    return folder


def test_the_proto_files_say_what_nvidias_own_client_speaks(protos: Path) -> None:
    protoc(protos, f"--descriptor_set_out={protos / 'set'}", "--include_imports")
    compiled = {file.name: file for file in FileDescriptorSet.FromString((protos / "set").read_bytes()).file}
    for module in (model_config_pb2, service_pb2):
        expected = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(expected)
        for file in (expected, compiled[expected.name]):
            without_json_names(file.message_type)
        assert compiled[expected.name] == expected


def without_json_names(messages: Iterable[DescriptorProto]) -> None:
    """protoc writes them into a descriptor set, and nowhere else."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        without_json_names(message.nested_type)


def python(stubs: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{stubs}:{EXAMPLES / 'python'}"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def prepared_here(url: str, path: Path) -> Prediction:
    with XrayClient(url) as client:
        return client.classify(path)


def test_generated_stubs_and_grpcio_are_all_that_a_caller_needs(url: str, stubs: Path, files: list[Path]) -> None:
    done = python(stubs, EXAMPLES / "python" / "classify.py", url, *files)
    *answered, refused = done.stdout.splitlines()
    for path, line in zip(files, answered, strict=False):
        expected = prepared_here(url, path)
        assert line == f"{path}: {expected.finding} {expected.probability:.4f}"
    assert refused.startswith(f"{files[-1]}: INVALID_ARGUMENT: ")
    assert "the image: not a PNG" in refused
    assert done.returncode == 1, done.stderr


# What docs/protocol.md says about the wire, done to the letter; it prints what the test compares.
CALLS = """
import json, struct, sys
import grpc
import grpc_service_pb2 as v2
from grpc_service_pb2_grpc import GRPCInferenceServiceStub

assert not {"tritonclient", "xray_client"} & set(sys.modules)
stub = GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
say = {}
say["live"] = stub.ServerLive(v2.ServerLiveRequest(), timeout=10).live
health = grpc.insecure_channel(sys.argv[1]).unary_unary("/grpc.health.v1.Health/Check")
say["healthy"] = health(b"", timeout=10) == bytes([8, 1])  # SERVING
say["ready"] = stub.ModelReady(v2.ModelReadyRequest(name="xray_classifier"), timeout=10).ready
metadata = stub.ModelMetadata(v2.ModelMetadataRequest(name="xray_classifier"), timeout=10)
say["inputs"] = [[t.name, t.datatype, list(t.shape)] for t in metadata.inputs]
say["outputs"] = [[t.name, t.datatype, list(t.shape)] for t in metadata.outputs]
config = stub.ModelConfig(v2.ModelConfigRequest(name="medclip"), timeout=10).config
say["preprocessing"] = json.loads(config.parameters["preprocessing"].string_value)

def infer(model, tensor, raw, deadline=10, **parameters):
    request = v2.ModelInferRequest(model_name=model, id="42", inputs=[tensor], raw_input_contents=[raw])
    for name, value in parameters.items():
        setattr(request.parameters[name], "int64_param" if name == "timeout" else "uint64_param", value)
    try:
        return stub.ModelInfer(request, timeout=deadline)
    except grpc.RpcError as err:
        return f"{err.code().name}: {err.details()}"

Tensor = v2.ModelInferRequest.InferInputTensor
image = Tensor(name="image", datatype="UINT8", shape=[2, 1, 224, 224])
answer = infer("medclip", image, bytes(2 * 224 * 224), priority=1, timeout=5_000_000)
say["id"], say["version"] = answer.id, answer.model_version
raw = dict(zip([t.name for t in answer.outputs], answer.raw_output_contents))
say["sizes"] = {t.name: [t.datatype, list(t.shape), len(raw[t.name])] for t in answer.outputs}
say["probability"] = struct.unpack("<4f", raw["probability"])
say["short"] = infer("medclip", image, bytes(7))
say["shape"] = infer("medclip", Tensor(name="image", datatype="UINT8", shape=[1, 1, 8, 8]), bytes(64))
say["type"] = infer("medclip", Tensor(name="image", datatype="FP32", shape=[1, 1, 224, 224]), bytes(4 * 224 * 224))
say["unknown"] = infer("nothing", image, bytes(2 * 224 * 224))
say["priority"] = infer("medclip", image, bytes(2 * 224 * 224), priority=9)
encoded = Tensor(name="encoded", datatype="BYTES", shape=[1, 1])
large = 40 * 2**20
say["deadline"] = infer("xray_classifier", encoded, struct.pack("<I", large) + bytes(large), deadline=0.002)
say["length"] = infer("xray_classifier", encoded, struct.pack("<I", 1000) + b"short")
print(json.dumps({key: value if isinstance(value, (str, bool, int, float, list, dict, tuple)) else "answered"
                  for key, value in say.items()}))
"""


def test_the_calls_on_the_protocol_page_are_as_it_says(url: str, stubs: Path, tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(CALLS)
    done = python(stubs, tmp_path / "calls.py", url)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["live"]
    assert said["ready"]
    assert said["healthy"]
    assert said["inputs"] == [["encoded", "BYTES", [-1, 1]]]
    assert [name for name, _, _ in said["outputs"]] == ["probability", "decision", "heatmap", "novelty"]
    assert said["preprocessing"] == {"geometry": "stretch", "interpolation": "bicubic", "size": 224, "version": 2}
    assert (said["id"], said["version"]) == ("42", "1")
    assert said["sizes"] == {
        "probability": ["FP32", [2, 2], 16],
        "decision": ["INT32", [2, 1], 8],
        "heatmap": ["FP32", [2, 7, 7], 392],
        "novelty": ["FP32", [2, 1], 8],
    }
    assert said["probability"][0] + said["probability"][1] == pytest.approx(1)
    for case in ("short", "shape", "type", "length"):
        assert said[case].startswith("INVALID_ARGUMENT"), (case, said[case])
    assert said["unknown"].startswith("NOT_FOUND")
    assert said["deadline"].startswith("DEADLINE_EXCEEDED")
    assert said["priority"] == "answered", "a priority that does not exist counts as the lowest"


def test_node_gets_the_same_answers(url: str, protos: Path, files: list[Path], tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if not (npm and node):
        pytest.skip("npm and node are not installed here")
    example = Path(shutil.copytree(EXAMPLES / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules")))
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(command, cwd=example, capture_output=True, text=True, timeout=300, check=False)
    if any(word in installed.stderr for word in ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN")):
        pytest.skip("npm reaches no registry here")
    assert installed.returncode == 0, installed.stderr
    done = subprocess.run(
        [node, example / "classify.js", protos, url, *files], capture_output=True, text=True, timeout=60, check=False
    )
    *answered, refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert not any("error" in line for line in answered), answered
    for path, line in zip(files, answered, strict=False):
        expected = prepared_here(url, path)
        assert (line["file"], line["finding"]) == (str(path), expected.finding)
        assert line["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert "INVALID_ARGUMENT" in refused["error"]
    assert "the image: not a PNG" in refused["error"]
    assert done.returncode == 1, done.stderr


def test_the_versions_of_the_node_example_are_pinned() -> None:
    package = json.loads((EXAMPLES / "node" / "package.json").read_text())
    lock = json.loads((EXAMPLES / "node" / "package-lock.json").read_text())
    for name, version in package["dependencies"].items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version
    assert all(entry.get("integrity") for path, entry in lock["packages"].items() if path)
