"""What every step of a build has to pass: its outputs against those of the step before, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from xray_build.errors import BuildError
from xray_client import contract

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Largest absolute differences that a step may make; infinity = reported, not limited.

    Attributes:
        probability: Of either probability.
        heatmap: Of a patch, log-odds.
        novelty: Relative to the greater of 1 and the novelty itself.
        decisions: How a changed decision counts: "none may change"; "at a threshold", only where the probability lies
            within twice the difference just measured of a threshold; "reported", any may.
    """

    probability: float
    heatmap: float
    novelty: float
    decisions: str = "none may change"

    def __post_init__(self) -> None:
        if self.decisions not in ("none may change", "at a threshold", "reported"):
            raise ValueError(f"decisions is {self.decisions!r}")


# ONNX Runtime against PyTorch: both 32-bit, another order of summation.
EXPORT = Bounds(probability=1e-4, heatmap=1e-3, novelty=1e-3, decisions="at a threshold")
# 16-bit arithmetic against 32-bit.
HALF = Bounds(probability=2e-3, heatmap=2e-2, novelty=2e-2)
# 8-bit integers are judged by accuracy and AUROC, see `int8`; here they are only reported.
REPORTED = Bounds(math.inf, math.inf, math.inf, decisions="reported")


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute differences from the step before over a set of radiographs.

    Attributes:
        images: How many radiographs were compared.
        probability: Of the probabilities.
        heatmap: Of the patches' log-odds.
        novelty: Of the novelty.
        decisions_changed: Decisions that differ.
        calibration_sha256: Hash of the set that was compared on, see `calibration`; empty where it is not recorded.
    """

    images: int
    probability: float
    heatmap: float
    novelty: float
    decisions_changed: int
    calibration_sha256: str = ""

    def as_dict(self) -> dict[str, float | int | str]:
        """For the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        changed = f", {self.decisions_changed} decisions changed" if self.decisions_changed else ""
        within = f"probability within {self.probability:.1e}, heatmap {self.heatmap:.1e}, novelty {self.novelty:.1e}"
        return within + changed


def compare(
    found: Outputs,
    expected: Outputs,
    bounds: Bounds,
    *,
    step: str,
    names: Sequence[str] | None = None,
    band: Sequence[float] | np.ndarray = (0.5,),
    calibration_sha256: str = "",
) -> Parity:
    """Compare the contract's outputs of two steps.

    Args:
        found: Of the step that is judged, each (n, ...).
        expected: Of the step before.
        bounds: What may differ, and how far.
        step: What is judged, for the error.
        names: The images' names; None = their places.
        band: Thresholds of the decision.
        calibration_sha256: Recorded in the result.

    Raises:
        BuildError: A bound is broken, or an answer is not a number; names the step, the output, how far, the image.
    """
    names = names or [str(i) for i in range(len(expected[contract.PROBABILITY]))]
    scale = np.maximum(1.0, np.abs(expected[contract.NOVELTY]))
    apart = {
        contract.PROBABILITY: np.abs(found[contract.PROBABILITY] - expected[contract.PROBABILITY]),
        contract.HEATMAP: np.abs(found[contract.HEATMAP] - expected[contract.HEATMAP]),
        contract.NOVELTY: np.abs(found[contract.NOVELTY] - expected[contract.NOVELTY]) / scale,
    }
    worst = {name: _largest(step, name, values, getattr(bounds, name), names) for name, values in apart.items()}
    changed = np.flatnonzero((found[contract.DECISION] != expected[contract.DECISION])[:, 0])
    _check_decisions(changed, expected, worst[contract.PROBABILITY], bounds, step=step, names=names, band=band)
    return Parity(
        len(names),
        worst[contract.PROBABILITY],
        worst[contract.HEATMAP],
        worst[contract.NOVELTY],
        len(changed),
        calibration_sha256,
    )


def _largest(step: str, output: str, apart: np.ndarray, bound: float, names: Sequence[str]) -> float:
    by_image = apart.reshape(len(names), -1).max(axis=1)
    image = int(np.argmax(np.where(np.isnan(by_image), np.inf, by_image)))
    if np.isnan(by_image[image]) or by_image[image] > bound:
        raise BuildError(
            f"{step}: {output} differs by {by_image[image]:.2e} on image {names[image]}, more than {bound:.0e}"
        )
    return float(by_image[image])


def _check_decisions(
    changed: np.ndarray,
    expected: Outputs,
    difference: float,
    bounds: Bounds,
    *,
    step: str,
    names: Sequence[str],
    band: Sequence[float] | np.ndarray,
) -> None:
    if bounds.decisions == "reported" or not len(changed):
        return
    if bounds.decisions == "at a threshold":
        probability = expected[contract.PROBABILITY][changed, contract.PNEUMONIA]
        distance = np.abs(np.asarray(band)[None] - probability[:, None]).min(axis=1)
        changed = changed[distance > 2 * difference]
    if len(changed):
        raise BuildError(
            f"{step}: {len(changed)} decisions differ from the step before, first on image {names[changed[0]]}"
        )
