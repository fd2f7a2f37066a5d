"""NVIDIA's compilers: options, versions, and what is said where they cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.plugin import model
from xray_build.artefacts import ONNX_FILE, PLAN_FILE
from xray_build.engines import tensorrt as compiler
from xray_build.engines.gpu import find_gpu
from xray_build.engines.onnx_export import export_onnx
from xray_build.engines.runtime import UnavailableError
from xray_build.engines.tensorrt import BuilderOptions, compile_engine, library_version, load_compiler
from xray_build.errors import BuildError


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model as ONNX."""
    path = tmp_path_factory.mktemp("graph") / ONNX_FILE
    reference = model("reference")
    export_onnx(reference.module, reference.own_images.images[:2], path)
    return path


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"min_batch": 0}, "1 <= min <= opt <= max"),
        ({"opt_batch": 64}, "not 1, 64, 32"),
        ({"optimization_level": 6}, "not 0 to 5"),
        ({"workspace_mib": -1}, "-1 MiB"),
        ({"compute_capability": "SM89"}, "is not like"),
    ],
)
def test_impossible_options_are_refused_when_they_are_made(wrong: dict, words: str) -> None:
    with pytest.raises(BuildError, match=words):
        BuilderOptions(**wrong)


def test_the_bindings_and_the_loaded_library_are_of_one_version() -> None:
    _, version = load_compiler("tensorrt-rtx")
    assert version == library_version("libtensorrt_rtx.so")


@pytest.mark.parametrize(("loaded", "remedy"), [("1.6.0", "install the bindings of version 1.6.0"), (None, "unknown")])
def test_bindings_of_another_version_than_the_library_are_refused(
    monkeypatch: pytest.MonkeyPatch, loaded: str | None, remedy: str
) -> None:
    # A fault on demand: a second library cannot be installed beside the first.
    monkeypatch.setattr(compiler, "library_version", lambda _: loaded)
    with pytest.raises(BuildError, match=rf"the tensorrt-rtx bindings are .*{remedy}"):
        load_compiler("tensorrt-rtx")


def test_a_library_that_is_not_loaded_has_no_version() -> None:
    assert library_version("libnvinfer_of_nobody.so") is None


def test_an_unknown_compiler_and_an_unknown_gpu_are_named(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'nvcc' is none of tensorrt, tensorrt-rtx"):
        load_compiler("nvcc")
    options = BuilderOptions(compute_capability="3.0")
    with pytest.raises(BuildError, match=r"compute capability 3\.0 \(one of .*8\.9"):
        compile_engine(graph, tmp_path / "engine", options, compiler="tensorrt-rtx")


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / ONNX_FILE).write_bytes(b"not a graph")
    with pytest.raises(BuildError, match=r"model\.onnx: tensorrt-rtx cannot read the graph"):
        compile_engine(tmp_path / ONNX_FILE, tmp_path / "engine", compiler="tensorrt-rtx")
    assert not (tmp_path / "engine").exists()


def test_a_compiler_for_rtx_keeps_no_timings(graph: Path, tmp_path: Path) -> None:
    options = BuilderOptions(timing_cache=tmp_path / "timing", max_batch=8)
    engine = compile_engine(graph, tmp_path / "engine", options, compiler="tensorrt-rtx")
    assert engine.tensors["image"] == ("UINT8", (-1, 1, 224, 224))
    assert not (tmp_path / "timing").exists()


def test_without_tensorrt_or_a_gpu_it_says_what_is_missing(graph: Path, tmp_path: Path) -> None:
    try:
        gpu = find_gpu()
    except UnavailableError as err:
        assert "no NVIDIA GPU" in str(err)  # noqa: PT017 (where there is a GPU, it has a name)
    else:
        pytest.skip(f"this machine has a {gpu.name}")
    with pytest.raises(UnavailableError, match=r"^tensorrt (is|cannot) .*\("):
        compile_engine(graph, tmp_path / PLAN_FILE)
