"""Run an artefact in this process, on the CPU: ONNX Runtime and OpenVINO. No torch: it works where Triton serves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from xray_build.errors import BuildError
from xray_client import contract

Run = Callable[[np.ndarray], Sequence[np.ndarray]]
"""uint8 (n, 1, s, s) -> the contract's outputs, in order."""


class UnavailableError(BuildError):
    """What an engine needs is not on this machine; whatever was built before is complete."""


def onnx_session(path: Path, *, threads: int = 0, spinning: bool = True) -> Run:
    """An ONNX graph under ONNX Runtime; `threads` 0 = one per core, `spinning` while they wait for one another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = 3  # it warns of every weight that FP16 kernels of a CPU have to widen
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = list(contract.OUTPUTS)
    return lambda images: session.run(names, {contract.IMAGE: images})


def openvino_session(path: Path, *, threads: int = 0) -> Run:
    """An ONNX graph or an OpenVINO IR (`.xml`) under OpenVINO; `threads` 0 = one per core.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    request = openvino_model(path, threads=threads).create_infer_request()

    def run(images: np.ndarray) -> list[np.ndarray]:
        answers = request.infer({contract.IMAGE: images})
        return [answers[name] for name in contract.OUTPUTS]

    return run


def openvino_model(path: Path, *, threads: int = 0, streams: int = 0) -> Any:
    """Compile for the CPU: for one image at a time, or with `streams` for throughput.

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    # Where the CPU has bfloat16, OpenVINO would use it for a 32-bit graph unasked.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if streams:
        options |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(streams)}
    if threads:
        # Unasked, threads are bound to the first cores, and all instances share one.
        options |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
    return openvino_core().compile_model(str(path), "CPU", options)


@functools.cache
def openvino_core() -> Any:
    """OpenVINO, once for this process and as long as it lives.

    Its CPU plugin gives the thread that loads it a stack for signals, and back the one before when it goes. Of two of
    them that go in the order in which they came, the second gives back the first one's, which is unmapped: the next
    signal, such as the end of a child process, ends the process without a word (seen with OpenVINO 2026.4).

    Raises:
        UnavailableError: OpenVINO is not installed.
    """
    return openvino().Core()


def openvino() -> Any:
    """The package.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import openvino
    except ImportError as err:
        raise UnavailableError(
            "OpenVINO is not installed", remedy='pip install "medclip-triton[engines]", or build without int8'
        ) from err
    return openvino


def in_batches(run: Run, images: np.ndarray, *, batch: int) -> dict[str, np.ndarray]:
    """The contract's outputs for uint8 images (n, 1, s, s), computed `batch` at a time."""
    return joined([run(images[i : i + batch]) for i in range(0, len(images), batch)])


def joined(parts: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Outputs of several batches as one, by name."""
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(column) for name, column in zip(contract.OUTPUTS, columns, strict=True)}


def run_onnx(path: Path, images: np.ndarray, *, batch: int) -> dict[str, np.ndarray]:
    """The contract's outputs from ONNX Runtime on the CPU, for uint8 images (n, 1, s, s)."""
    return in_batches(onnx_session(path), images, batch=batch)


def run_openvino(path: Path, images: np.ndarray, *, batch: int) -> dict[str, np.ndarray]:
    """The contract's outputs from OpenVINO on the CPU, for uint8 images (n, 1, s, s)."""
    return in_batches(openvino_session(path), images, batch=batch)
