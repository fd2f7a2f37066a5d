"""Comparison of a build step with the step before it: outputs image by image, within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_build.errors import BuildError
from xray_client import contract

Outputs = Mapping[str, npt.NDArray[Any]]
"""Name of an output -> its values, (n, ...)."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest absolute differences that a step may make; infinity = reported, not limited.

    Attributes:
        probability: Difference in either probability.
        heatmap: Difference in a patch, log-odds.
        novelty: Difference relative to the greater of 1 and the novelty itself.
        decisions: Treatment of a changed decision: "none may change"; "at a threshold", allowed only where the
            probability lies within twice the measured difference of a threshold; "reported", allowed.
    """

    probability: float
    heatmap: float
    novelty: float
    decisions: str = "none may change"

    def __post_init__(self) -> None:
        if self.decisions not in ("none may change", "at a threshold", "reported"):
            raise ValueError(f"decisions is {self.decisions!r}")


# ONNX Runtime against PyTorch: both 32-bit, another order of summation.
EXPORT = Tolerance(probability=1e-4, heatmap=1e-3, novelty=1e-3, decisions="at a threshold")
# 16-bit arithmetic against 32-bit.
HALF = Tolerance(probability=2e-3, heatmap=2e-2, novelty=2e-2)
# 8-bit integers are evaluated by accuracy and AUROC, see `int8`; their differences are only reported.
REPORTED = Tolerance(math.inf, math.inf, math.inf, decisions="reported")


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute differences from the step before over a set of radiographs.

    Attributes:
        images: Number of radiographs compared.
        probability: Largest difference in a probability.
        heatmap: Largest difference in a patch, log-odds.
        novelty: Largest difference in the novelty, relative to the greater of 1 and the novelty itself.
        decisions_changed: Number of decisions that differ.
        calibration_set_sha256: Hash of the calibration set; empty where it is not recorded.
    """

    images: int
    probability: float
    heatmap: float
    novelty: float
    decisions_changed: int
    calibration_set_sha256: str = ""

    def as_dict(self) -> dict[str, float | int | str]:
        """All fields, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        changed = f", {self.decisions_changed} decisions changed" if self.decisions_changed else ""
        within = f"probability within {self.probability:.1e}, heatmap {self.heatmap:.1e}, novelty {self.novelty:.1e}"
        return within + changed


def compare(
    found: Outputs,
    expected: Outputs,
    tolerance: Tolerance,
    *,
    step: str,
    names: Sequence[str] | None = None,
    band: Sequence[float] | npt.NDArray[np.floating[Any]] = (0.5,),
    calibration_set_sha256: str = "",
) -> Parity:
    """Compare the contract's outputs of two steps.

    Args:
        found: Outputs of the step under test, each (n, ...).
        expected: Outputs of the step before.
        tolerance: Allowed differences.
        step: Name of the step under test, for the error.
        names: Names of the images; None = their positions.
        band: Probabilities between which the finding is Uncertain.
        calibration_set_sha256: Hash of the images, for the result.

    Raises:
        BuildError: A difference exceeds the tolerance, or an answer is not a number; names the step, the output, the
            difference and the image.
    """
    names = names or [str(i) for i in range(len(expected[contract.PROBABILITY]))]
    scale = np.maximum(1.0, np.abs(expected[contract.NOVELTY]))
    apart = {
        contract.PROBABILITY: np.abs(found[contract.PROBABILITY] - expected[contract.PROBABILITY]),
        contract.HEATMAP: np.abs(found[contract.HEATMAP] - expected[contract.HEATMAP]),
        contract.NOVELTY: np.abs(found[contract.NOVELTY] - expected[contract.NOVELTY]) / scale,
    }
    worst = {name: _largest(step, name, values, getattr(tolerance, name), names) for name, values in apart.items()}
    changed = np.flatnonzero((found[contract.DECISION] != expected[contract.DECISION])[:, 0])
    _check_decisions(changed, expected, worst[contract.PROBABILITY], tolerance, step=step, names=names, band=band)
    return Parity(
        len(names),
        worst[contract.PROBABILITY],
        worst[contract.HEATMAP],
        worst[contract.NOVELTY],
        len(changed),
        calibration_set_sha256,
    )


def _largest(step: str, output: str, apart: npt.NDArray[Any], limit: float, names: Sequence[str]) -> float:
    by_image = apart.reshape(len(names), -1).max(axis=1)
    image = int(np.argmax(np.where(np.isnan(by_image), np.inf, by_image)))
    if np.isnan(by_image[image]) or by_image[image] > limit:
        raise BuildError(
            f"{step}: {output} differs by {by_image[image]:.2e} on image {names[image]}, more than {limit:.0e}"
        )
    return float(by_image[image])


def _check_decisions(
    changed: npt.NDArray[np.intp],
    expected: Outputs,
    difference: float,
    tolerance: Tolerance,
    *,
    step: str,
    names: Sequence[str],
    band: Sequence[float] | npt.NDArray[np.floating[Any]],
) -> None:
    if tolerance.decisions == "reported" or not len(changed):
        return
    if tolerance.decisions == "at a threshold":
        probability = expected[contract.PROBABILITY][changed, contract.PNEUMONIA]
        distance = np.abs(np.asarray(band)[None] - probability[:, None]).min(axis=1)
        changed = changed[distance > 2 * difference]
    if len(changed):
        raise BuildError(
            f"{step}: {len(changed)} decisions differ from the step before, first on image {names[changed[0]]}"
        )
