"""Run an artefact in this process, on the CPU, by ONNX Runtime or OpenVINO. No torch: it works where Triton serves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from xray_build.errors import BuildError
from xray_client import contract

Images = npt.NDArray[np.uint8]
"""uint8 (n, 1, s, s)."""
Run = Callable[[Images], Sequence[npt.NDArray[Any]]]
"""uint8 (n, 1, s, s) -> the contract's outputs, in order."""


class UnavailableError(BuildError):
    """A library or device for an engine is missing on this machine; artefacts built before are complete."""


def onnx_session(path: Path, *, threads: int = 0, spinning: bool = True) -> Run:
    """Load an ONNX graph into ONNX Runtime; `threads` 0 = one per core, `spinning` while they wait for one another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3  # it warns about every weight that FP16 kernels of a CPU have to widen
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(contract.OUTPUTS)
    return lambda images: session.run(names, {contract.IMAGE: images})


def openvino_session(path: Path, *, threads: int = 0) -> Run:
    """Load an ONNX graph or an OpenVINO IR (`.xml`) into OpenVINO; `threads` 0 = one per core.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    request = openvino_model(path, threads=threads).create_infer_request()

    def run(images: Images) -> list[npt.NDArray[Any]]:
        answers = request.infer({contract.IMAGE: images})
        return [answers[name] for name in contract.OUTPUTS]

    return run


def openvino_model(path: Path, *, threads: int = 0, streams: int = 0) -> Any:
    """Compile a model for the CPU: for one image at a time, or with `streams` for throughput.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    # By default OpenVINO computes a 32-bit graph in bfloat16 where the CPU has it.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if streams:
        options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(streams)}
    if threads:
        # By default threads are bound to the first cores, and all instances share one.
        options |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return openvino_core().compile_model(str(path), "CPU", options)


@functools.cache
def openvino_core() -> Any:
    """Create OpenVINO's `Core` once, for the life of this process.

    Its CPU plugin installs a signal stack in the thread that loads it, and restores the previous one when it is
    unloaded. If two are unloaded in the order of their loading, the second restores the first one's stack, which is
    unmapped by then: the next signal, such as the end of a child process, kills the process without a message (seen
    with OpenVINO 2026.4).

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    return openvino().Core()


def openvino() -> Any:
    """Import OpenVINO.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as err:
        raise UnavailableError(
            "OpenVINO is not installed", remedy='pip install "medclip-triton[engines]", or build without int8'
        ) from err
    return openvino


def in_batches(run: Run, images: Images, *, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Compute the contract's outputs for images, `batch` at a time."""
    return joined([run(images[i : i + batch]) for i in range(0, len(images), batch)])


def joined(parts: Sequence[Sequence[npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Join the outputs of several batches, by name."""
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(column) for name, column in zip(contract.OUTPUTS, columns, strict=True)}


def run_onnx(path: Path, images: Images, *, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Compute the contract's outputs by ONNX Runtime on the CPU."""
    return in_batches(onnx_session(path), images, batch=batch)


def run_openvino(path: Path, images: Images, *, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Compute the contract's outputs by OpenVINO on the CPU."""
    return in_batches(openvino_session(path), images, batch=batch)
