"""FP32 graph -> strongly typed FP16 graph, by NVIDIA's ModelOpt AutoCast; the comparison decides what stays in FP32.

TensorRT 11 has no precision flags: an engine computes in the types of the graph. So the choice is made here, and every
engine that reads the graph follows it.

Nodes that serve some outputs only (calibration, decision, heatmap, novelty) always stay in FP32: they are a small part
of the work, and the novelty of a photograph squares to more than FP16 can hold, which no radiograph in a calibration
set would show. Rounding hurts most near the input, where every later layer multiplies it: if the whole tower in FP16
differs too much, the tower's beginning stays in FP32, the shortest that keeps the difference to half the tolerance,
which leaves room for radiographs outside the calibration set.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from xray_build.errors import BuildError
from xray_client import contract
from xray_client.console import quiet

from .calibration_set import CalibrationSet
from .onnx_types import count_nodes
from .parity import HALF, Parity, compare
from .runtime import UnavailableError, run_onnx

# Images to find values that FP16 cannot hold; the differences are measured on the whole set.
_RANGE_IMAGES = 16
_EIGHTHS = 8


@dataclass(frozen=True)
class HalfPrecision:
    """Result of a conversion.

    Attributes:
        parity: Comparison with the FP32 graph.
        nodes: Number of nodes of the FP16 graph.
        tower_in_fp32: Share of the tower's nodes, from the input, that stayed in FP32.
        attempts: Number of conversions tried.
    """

    parity: Parity
    nodes: int
    tower_in_fp32: float
    attempts: int


def to_fp16(
    graph: Path, calibration_set: CalibrationSet, path: Path, *, band: list[float], batch: int = 16
) -> HalfPrecision:
    """Convert a graph, inputs and outputs keeping their types, and compare the two on the calibration set.

    Args:
        graph: FP32 graph, as `export_onnx` writes it.
        calibration_set: Real radiographs.
        path: File to write.
        band: Probabilities between which the finding is Uncertain.
        batch: Size of the batches in the comparison.

    Raises:
        BuildError: A difference exceeds the tolerance even with seven eighths of the tower in FP32; names the output,
            the difference and the image.
        UnavailableError: ModelOpt is not installed.
    """
    calibration_set.need_real("FP16")
    expected = run_onnx(graph, calibration_set.images, batch=batch)
    tower, rest = tower_and_rest(onnx.load(str(graph), load_external_data=False))
    attempts = 0

    def attempt(eighths: int) -> Parity:
        nonlocal attempts
        attempts += 1
        kept = [*tower[: len(tower) * eighths // _EIGHTHS], tower[-1], *rest]
        onnx.save(_autocast(graph, kept, calibration_set.images[:_RANGE_IMAGES]), str(path))
        return compare(
            run_onnx(path, calibration_set.images, batch=batch),
            expected,
            HALF,
            step="FP16",
            names=calibration_set.names,
            band=band,
            calibration_set_sha256=calibration_set.sha256,
        )

    eighths, parity = _shortest(attempt)
    return HalfPrecision(parity, count_nodes(path), eighths / _EIGHTHS, attempts)


def _shortest(attempt: Callable[[int], Parity]) -> tuple[int, Parity]:
    """Find the fewest eighths of the tower in FP32 that reach half the tolerance; the file is left as such."""
    aim = HALF.probability / 2

    def good_enough(eighths: int) -> Parity | None:
        try:
            parity = attempt(eighths)
        except BuildError:
            return None
        return parity if parity.probability <= aim else None

    if parity := good_enough(0):
        return 0, parity
    low, high = 0, _EIGHTHS  # `low` is too few; all of it is FP32 again
    best: Parity | None = None
    while high - low > 1:
        middle = (low + high) // 2
        if parity := good_enough(middle):
            high, best = middle, parity
        else:
            low = middle
    if best is None:
        high = _EIGHTHS - 1  # raises the difference, or is within the tolerance though not within half of it
    return high, attempt(high)


def tower_and_rest(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Split node names into those that every output depends on and the others, each in the graph's order."""
    producer = {name: node for node in model.graph.node for name in node.output}

    def ancestors(tensor: str) -> set[str]:
        found: set[str] = set()
        todo = [tensor]
        while todo:
            node = producer.get(todo.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                todo += node.input
        return found

    shared = set.intersection(*(ancestors(output.name) for output in model.graph.output))
    names = [node.name for node in model.graph.node]
    return [name for name in names if name in shared], [name for name in names if name not in shared]


def _autocast(graph: Path, kept: list[str], images: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    try:
        with quiet():
            from modelopt.onnx.autocast import convert_to_mixed_precision
    except ImportError as err:
        raise UnavailableError(
            "ModelOpt is not installed", remedy='pip install "medclip-triton[engines]", or build without fp16'
        ) from err
    with tempfile.TemporaryDirectory() as folder, quiet():
        data = Path(folder) / "calibration.npz"
        # One array per input; its first axis is the batch that the graph is run on, all at once.
        np.savez(data, **{contract.IMAGE: images})
        converted: onnx.ModelProto = convert_to_mixed_precision(
            onnx_path=str(graph),
            low_precision_type="fp16",
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in kept],
            keep_io_types=True,
            calibration_data=str(data),
            providers=["cpu"],
        )
    return converted
