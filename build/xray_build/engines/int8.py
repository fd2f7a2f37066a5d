"""FP32 graph -> OpenVINO INT8 for CPUs, by NNCF's post-training quantization with accuracy control.

The ranges of activations come from the calibration set. The loss of the quantized network is measured on labelled
radiographs; while it exceeds the tolerance, NNCF reverts the operations that cost most to FP32. Nodes that serve some
outputs only (calibration, decision, heatmap, novelty) stay in FP32: they are little work, and distances are meaningless
in 8 bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from xray_build.errors import BuildError
from xray_client import contract
from xray_client.console import quiet

from .calibration_set import CalibrationSet
from .fp16 import tower_and_rest
from .parity import REPORTED, Outputs, Parity, compare
from .runtime import Images, UnavailableError, openvino, openvino_core, run_onnx, run_openvino

# Largest accepted losses, as shares: 0.3 points of accuracy.
MAX_ACCURACY_LOSS = 0.003
MAX_AUROC_LOSS = 0.002


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled radiographs to evaluate on.

    Attributes:
        images: uint8 (n, 1, s, s).
        labels: int (n,), indices into the contract's labels.
        source: Folder or table that they came from.
    """

    images: Images
    labels: npt.NDArray[np.integer[Any]]
    source: str

    def __post_init__(self) -> None:
        if len(np.unique(self.labels)) != len(contract.LABELS):
            raise BuildError("the evaluation needs radiographs of both classes", source=self.source)


@dataclass(frozen=True)
class Quantized:
    """Result of a quantization.

    Attributes:
        parity: Comparison with the FP32 graph, on the calibration set.
        accuracy: Accuracy at the operating point, before and after; None without labelled radiographs.
        auroc: AUROC, before and after; likewise.
        seconds: Duration of the quantization, comparison not included.
        quantized: Number of operations in 8 bits, of those that have weights.
    """

    parity: Parity
    accuracy: tuple[float, float] | None
    auroc: tuple[float, float] | None
    seconds: float
    quantized: str


def quantize(
    graph: Path,
    calibration_set: CalibrationSet,
    path: Path,
    validation: Labelled | None,
    *,
    operating_point: float,
    band: list[float],
) -> Quantized:
    """Quantize a graph and measure the loss.

    Args:
        graph: FP32 graph, as `export_onnx` writes it.
        calibration_set: Real radiographs.
        path: File to write, `.xml`; its weights are written beside it as `.bin`.
        validation: Labelled radiographs to evaluate on; None = no evaluation, as for measuring speed with random
            weights.
        operating_point: Probability from which a forced choice says Pneumonia, for accuracy.
        band: Probabilities between which the finding is Uncertain.

    Raises:
        BuildError: Accuracy or AUROC falls by more than the tolerance; says which and how far.
        UnavailableError: OpenVINO or NNCF is not installed.
    """
    calibration_set.need_real("INT8")
    package, nncf = openvino(), _nncf()
    started = time.monotonic()
    model = openvino_core().read_model(str(graph))
    _, rest = tower_and_rest(onnx.load(str(graph), load_external_data=False))
    options = {
        "preset": nncf.QuantizationPreset.PERFORMANCE,
        "subset_size": len(calibration_set.images),
        "ignored_scope": nncf.IgnoredScope(names=_known(model, rest), validate=False),
    }
    dataset = nncf.Dataset([image[None] for image in calibration_set.images])
    before = run_onnx(graph, validation.images, batch=16) if validation else {}
    with quiet():
        if validation is None:
            small = nncf.quantize(model, dataset, **options)
        else:
            small = nncf.quantize_with_accuracy_control(
                model,
                dataset,
                nncf.Dataset(list(np.array_split(validation.images, max(1, len(validation.images) // 16)))),
                validation_fn=_score_by_loss(before, validation.labels, operating_point),
                max_drop=1.0,
                **options,
            )
    package.save_model(small, str(path), compress_to_fp16=False)
    seconds = time.monotonic() - started
    accuracy = area = None
    if validation is not None:
        after = run_openvino(path, validation.images, batch=16)
        accuracy, area = (
            (measure(before, validation.labels, operating_point), measure(after, validation.labels, operating_point))
            for measure in (_accuracy, _auroc)
        )
        _check_loss(accuracy, area, len(validation.labels))
    parity = compare(
        run_openvino(path, calibration_set.images, batch=16),
        run_onnx(graph, calibration_set.images, batch=16),
        REPORTED,
        step="INT8",
        names=calibration_set.names,
        band=band,
        calibration_set_sha256=calibration_set.sha256,
    )
    return Quantized(parity, accuracy, area, seconds, _in_8_bits(small))


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # keeps NNCF from reporting its use
    try:
        with quiet():
            import nncf
    except ImportError as err:
        raise UnavailableError("NNCF is not installed", remedy='pip install "medclip-triton[engines]"') from err
    return nncf


def _score_by_loss(
    before: Outputs, labels: npt.NDArray[np.integer[Any]], operating_point: float
) -> Callable[[Any, Iterable[Images]], float]:
    """Make the score that NNCF keeps high: 1 minus the greater loss, in units of its tolerance."""
    accuracy, area = _accuracy(before, labels, operating_point), _auroc(before, labels)

    def score(compiled: Any, batches: Iterable[Images]) -> float:
        after = {contract.PROBABILITY: np.concatenate([compiled(batch)[contract.PROBABILITY] for batch in batches])}
        accuracy_loss, auroc_loss = accuracy - _accuracy(after, labels, operating_point), area - _auroc(after, labels)
        return 1.0 - max(accuracy_loss / MAX_ACCURACY_LOSS, auroc_loss / MAX_AUROC_LOSS, 0.0)

    return score


def _accuracy(answers: Outputs, labels: npt.NDArray[np.integer[Any]], operating_point: float) -> float:
    return accuracy_at(answers[contract.PROBABILITY][:, contract.PNEUMONIA], labels, operating_point)


def _auroc(answers: Outputs, labels: npt.NDArray[np.integer[Any]], *_: float) -> float:
    return auroc(answers[contract.PROBABILITY][:, contract.PNEUMONIA], labels)


def _check_loss(accuracy: tuple[float, float], area: tuple[float, float], images: int) -> None:
    for name, (before, after), tolerance in (
        ("accuracy", accuracy, MAX_ACCURACY_LOSS),
        ("AUROC", area, MAX_AUROC_LOSS),
    ):
        if before - after > tolerance:
            raise BuildError(
                f"INT8: {name} falls from {before:.4f} to {after:.4f} on {images} radiographs, more than {tolerance}",
                remedy="build without int8",
            )


def accuracy_at(
    probability: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], operating_point: float
) -> float:
    """Accuracy of a forced choice at an operating point."""
    return float(((probability >= operating_point) == (labels == contract.PNEUMONIA)).mean())


def auroc(probability: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]) -> float:
    """Area under the ROC curve: how often a pneumonia scores above a normal, ties counting half (Mann and Whitney)."""
    pneumonia, normal = probability[labels == contract.PNEUMONIA], np.sort(probability[labels != contract.PNEUMONIA])
    below = np.searchsorted(normal, pneumonia, "left") + np.searchsorted(normal, pneumonia, "right")
    return float(below.mean() / (2 * len(normal)))


def _known(model: Any, names: list[str]) -> list[str]:
    """Keep the names that OpenVINO's reader kept."""
    present = {node.get_friendly_name() for node in model.get_ops()}
    return [name for name in names if name in present]


def _in_8_bits(model: Any) -> str:
    weighty = [
        node for node in model.get_ops() if node.get_type_name() in ("Convolution", "GroupConvolution", "MatMul")
    ]
    quantized = [node for node in weighty if node.input_value(0).get_node().get_type_name() == "FakeQuantize"]
    return f"{len(quantized)} of {len(weighty)}"
