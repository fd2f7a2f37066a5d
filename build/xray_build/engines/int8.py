"""FP32 graph -> OpenVINO INT8 for CPUs, by NNCF's post-training quantization with accuracy control.

Activations' ranges come from real radiographs. What the quantized network loses is measured on labelled radiographs,
and while it loses more than is allowed, NNCF gives the operations that cost most back to FP32. What is computed for
some outputs only (calibration, decision, heatmap, novelty) stays in FP32: it is little work, and its distances are
meaningless in 8 bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from xray_build.errors import BuildError
from xray_client import contract
from xray_client.console import quiet

from .calibration_set import CalibrationSet
from .fp16 import tower_and_rest
from .parity import REPORTED, Outputs, Parity, compare
from .runtime import UnavailableError, openvino, openvino_core, run_onnx, run_openvino

# Largest loss that is accepted, as shares: 0.3 points of accuracy.
MAX_ACCURACY_LOST = 0.003
MAX_AUROC_LOST = 0.002


@dataclass(frozen=True, eq=False)
class Labelled:
    """Radiographs whose truth is known, to judge on.

    Attributes:
        images: uint8 (n, 1, s, s).
        labels: int (n,), indices into the contract's labels.
        source: Where they came from.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str

    def __post_init__(self) -> None:
        if len(np.unique(self.labels)) != len(contract.LABELS):
            raise BuildError("radiographs of both classes are needed to judge on", source=self.source)


@dataclass(frozen=True)
class Quantized:
    """What was quantized, and what it cost.

    Attributes:
        parity: Against the FP32 graph, on the calibration set.
        accuracy: At the operating point, before and after; None if nothing was given to judge on.
        auroc: The same.
        seconds: Of the quantization, comparison not included.
        quantized: Operations in 8 bits, of those that have weights.
    """

    parity: Parity
    accuracy: tuple[float, float] | None
    auroc: tuple[float, float] | None
    seconds: float
    quantized: str


def quantize(
    graph: Path,
    calibration: CalibrationSet,
    path: Path,
    validation: Labelled | None,
    *,
    operating_point: float,
    band: list[float],
) -> Quantized:
    """Quantize a graph and measure what it lost.

    Args:
        graph: FP32, as `export_onnx` writes it.
        calibration: Real radiographs.
        path: The `.xml` to write; its weights are written beside it as `.bin`.
        validation: To judge on; None = do not judge, as for measuring speed with random weights.
        operating_point: Probability from which Pneumonia is said, for accuracy.
        band: Thresholds of the decision.

    Raises:
        BuildError: More accuracy or AUROC is lost than allowed; says which and how much.
        UnavailableError: OpenVINO or NNCF is not installed.
    """
    calibration.need_real("INT8")
    package, nncf = openvino(), _nncf()
    started = time.monotonic()
    model = openvino_core().read_model(str(graph))
    _, rest = tower_and_rest(onnx.load(str(graph), load_external_data=False))
    options = {
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "subset_size": len(calibration.images),
        "ignored_scope": nncf.IgnoredScope(names=_known(model, rest), validate=False),
    }
    dataset = nncf.Dataset([image[None] for image in calibration.images])
    before = run_onnx(graph, validation.images, batch=16) if validation else {}
    with quiet():
        if validation is None:
            small = nncf.quantize(model, dataset, **options)
        else:
            small = nncf.quantize_with_accuracy_control(
                model,
                dataset,
                nncf.Dataset(list(np.array_split(validation.images, max(1, len(validation.images) // 16)))),
                validation_fn=_judge(before, validation.labels, operating_point),
                max_drop=1.0,
                **options,
            )
    package.save_model(small, str(path), compress_to_fp16=False)
    seconds = time.monotonic() - started
    accuracy = area = None
    if validation is not None:
        after = run_openvino(path, validation.images, batch=16)
        accuracy, area = (
            (of(before, validation.labels, operating_point), of(after, validation.labels, operating_point))
            for of in (_accuracy, _auroc)
        )
        _check_loss(accuracy, area, len(validation.labels))
    parity = compare(
        run_openvino(path, calibration.images, batch=16),
        run_onnx(graph, calibration.images, batch=16),
        REPORTED,
        step="INT8",
        names=calibration.names,
        band=band,
        calibration_sha256=calibration.sha256,
    )
    return Quantized(parity, accuracy, area, seconds, _in_8_bits(small))


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # or NNCF would report its use to its makers
    try:
        with quiet():
            import nncf
    except ImportError as err:
        raise UnavailableError("NNCF is not installed", remedy='pip install "medclip-triton[engines]"') from err
    return nncf


def _judge(before: Outputs, labels: np.ndarray, operating_point: float) -> Callable[[Any, Iterable[np.ndarray]], float]:
    """What NNCF keeps high: 1 less the greater loss, in units of what is allowed."""
    accuracy, area = _accuracy(before, labels, operating_point), _auroc(before, labels)

    def score(compiled: Any, batches: Iterable[np.ndarray]) -> float:
        after = {contract.PROBABILITY: np.concatenate([compiled(batch)[contract.PROBABILITY] for batch in batches])}
        lost = accuracy - _accuracy(after, labels, operating_point), area - _auroc(after, labels)
        return 1.0 - max(lost[0] / MAX_ACCURACY_LOST, lost[1] / MAX_AUROC_LOST, 0.0)

    return score


def _accuracy(answers: Outputs, labels: np.ndarray, operating_point: float) -> float:
    return share_right(answers[contract.PROBABILITY][:, contract.PNEUMONIA], labels, operating_point)


def _auroc(answers: Outputs, labels: np.ndarray, *_: float) -> float:
    return auroc(answers[contract.PROBABILITY][:, contract.PNEUMONIA], labels)


def _check_loss(accuracy: tuple[float, float], area: tuple[float, float], images: int) -> None:
    for name, (before, after), bound in (
        ("accuracy", accuracy, MAX_ACCURACY_LOST),
        ("AUROC", area, MAX_AUROC_LOST),
    ):
        if before - after > bound:
            raise BuildError(
                f"INT8: {name} falls from {before:.4f} to {after:.4f} on {images} radiographs, more than {bound}",
                remedy="build without int8",
            )


def share_right(probability: np.ndarray, labels: np.ndarray, operating_point: float) -> float:
    """Accuracy of a forced choice."""
    return float(((probability >= operating_point) == (labels == contract.PNEUMONIA)).mean())


def auroc(probability: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve: how often a pneumonia scores above a normal, ties counting half (Mann and Whitney)."""
    pneumonia, normal = probability[labels == contract.PNEUMONIA], np.sort(probability[labels != contract.PNEUMONIA])
    below = np.searchsorted(normal, pneumonia, "left") + np.searchsorted(normal, pneumonia, "right")
    return float(below.mean() / (2 * len(normal)))


def _known(model: Any, names: list[str]) -> list[str]:
    """Those that OpenVINO's reader kept under their own name."""
    present = {node.get_friendly_name() for node in model.get_ops()}
    return [name for name in names if name in present]


def _in_8_bits(model: Any) -> str:
    weighty = [
        node for node in model.get_ops() if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    ]
    quantized = [node for node in weighty if node.input_value(0).get_node().get_type_name() == "FakeQuantize"]
    return f"{len(quantized)} of {len(weighty)}"
