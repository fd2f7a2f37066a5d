"""Metrics with 95 % confidence intervals, by a bootstrap over patients.

Images of one patient resemble each other, so intervals over images would be too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix

from xray_client import FINDINGS, Estimate

RESAMPLES = 1000
CALIBRATION_BINS = 15


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of one model on one split.

    Attributes:
        probability: float (n,), of Pneumonia.
        labels: int (n,).
        patients: str (n,), patient of each radiograph.
        threshold: Probability from which a radiograph counts as Pneumonia.
    """

    probability: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    patients: npt.NDArray[Any]
    threshold: float

    @property
    def predicted(self) -> npt.NDArray[Any]:
        """int (n,), 1 = Pneumonia."""
        return (self.probability >= self.threshold).astype(int)

    @property
    def confusion(self) -> npt.NDArray[Any]:
        """int (2, 2): rows are the truth, columns the prediction."""
        return confusion_matrix(self.labels, self.predicted, labels=[0, 1])


def summarise(scores: Scores, *, seed: int = 0) -> dict[str, Any]:
    """Compute accuracy, sensitivity, specificity and AUROC, each as {value, low, high}, and the underlying counts.

    A set of one class has only those that can be computed.
    """
    correct = (scores.predicted == scores.labels).astype(float)
    everyone, sick, healthy = np.ones_like(correct), scores.labels == 1, scores.labels == 0
    weights = patient_weights(scores.patients, seed)
    estimates = {
        name: _share(correct, among.astype(float), weights, scores.patients)
        for name, among in (("accuracy", everyone), ("sensitivity", sick), ("specificity", healthy))
        if among.any()
    }
    if sick.any() and healthy.any():
        estimates["auroc"] = _auroc(scores, weights)
    return {
        **{name: rounded(e.value, e.low, e.high) for name, e in estimates.items()},
        "threshold": scores.threshold,
        "images": len(scores.labels),
        "patients": len(np.unique(scores.patients)),
        "confusion": scores.confusion.tolist(),
    }


def summarise_predictions(scores: Scores, *, decision: npt.NDArray[Any] | None = None, seed: int = 0) -> dict[str, Any]:
    """Compute the metrics of `summarise`, and PPV, NPV, F1, AUPRC, Brier score, ECE and the coverage of the findings.

    PPV, NPV and AUPRC depend on the prevalence of Pneumonia among the radiographs.

    Args:
        scores: Probabilities and the operating point.
        decision: int (n,), index into FINDINGS; adds `coverage` (findings that are right, or Uncertain, which stands
            for the set of both labels) and `certain` (findings that are not Uncertain).
        seed: Seed of the bootstrap.
    """
    weights = patient_weights(scores.patients, seed)
    predicted, labels, everyone = scores.predicted, scores.labels, np.ones(len(scores.labels))
    correct = (predicted == labels).astype(float)
    shares = {"ppv": (correct, predicted == 1), "npv": (correct, predicted == 0)}
    if decision is not None:
        uncertain = decision == FINDINGS.index("Uncertain")
        shares |= {"coverage": ((decision == labels) | uncertain, everyone), "certain": (~uncertain, everyone)}
    estimates = {
        name: _share(hit.astype(float), among.astype(float), weights, scores.patients)
        for name, (hit, among) in shares.items()
        if among.any()
    }
    of_weights: dict[str, Callable[[npt.NDArray[Any]], float]] = {
        "f1": lambda w: 2 * (w @ (predicted * labels)) / max(w @ (predicted + labels), 1e-12),
        "brier": lambda w: w @ (scores.probability - labels) ** 2 / w.sum(),
        "ece": lambda w: calibration_error(scores.probability, labels, w),
    }
    enough = list(weights)
    if 0 < labels.sum() < len(labels):
        of_weights["auprc"] = lambda w: float(average_precision_score(labels, scores.probability, sample_weight=w))
        enough = [w for w in weights if (w @ labels > 0) and (w @ (1 - labels) > 0)]
    for name, figure in of_weights.items():
        low, high = np.quantile([figure(w) for w in enough], [0.025, 0.975])
        estimates[name] = Estimate(float(figure(everyone)), float(low), float(high))
    further = {name: rounded(e.value, e.low, e.high) for name, e in estimates.items()}
    findings = {} if decision is None else {"findings": np.bincount(decision, minlength=len(FINDINGS)).tolist()}
    return summarise(scores, seed=seed) | further | findings


def rounded(value: float, low: float, high: float) -> dict[str, float]:
    """Write an estimate as reports keep it."""
    return {"value": round(float(value), 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def calibration_error(probability: npt.NDArray[Any], labels: npt.NDArray[Any], weights: npt.NDArray[Any]) -> float:
    """Compute the expected calibration error over 15 equal bins of the probability of Pneumonia (Guo et al. 2017).

    Args:
        probability: float (n,).
        labels: int (n,), 1 = Pneumonia.
        weights: float (n,), weight of each radiograph.
    """
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.bincount(bins, weights * (probability - labels), CALIBRATION_BINS)
    return float(np.abs(gap).sum() / weights.sum())


def patient_weights(patients: npt.NDArray[Any], seed: int) -> npt.NDArray[Any]:
    """Draw how often each image counts in each resample of the patients: int (RESAMPLES, n)."""
    _, index = np.unique(patients, return_inverse=True)
    count = index.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn[:, index]


def _share(
    hit: npt.NDArray[Any], among: npt.NDArray[Any], weights: npt.NDArray[Any], patients: npt.NDArray[Any]
) -> Estimate:
    value = float((hit * among).sum() / among.sum())
    total = weights @ among
    resampled = (weights @ (hit * among))[total > 0] / total[total > 0]
    return _interval(value, resampled, len(np.unique(patients[among > 0])))


def _auroc(scores: Scores, weights: npt.NDArray[Any]) -> Estimate:
    resampled = weighted_auroc(scores.labels, scores.probability, weights)
    value = float(weighted_auroc(scores.labels, scores.probability, np.ones((1, len(scores.labels))))[0])
    smaller = min(len(np.unique(scores.patients[scores.labels == label])) for label in (0, 1))
    return _interval(value, resampled[np.isfinite(resampled)], smaller)


def weighted_auroc(
    labels: npt.NDArray[Any], probability: npt.NDArray[Any], weights: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Compute the AUROC of each resample: the share of pairs that are in order, ties as halves (Mann and Whitney 1947).

    Args:
        labels: int (n,), 1 = Pneumonia.
        probability: float (n,).
        weights: float (r, n).

    Returns:
        float (r,), NaN where a resample has one class only.
    """
    order = np.argsort(probability, kind="stable")
    first = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))  # of each run of equal probabilities
    sorted_weights = weights[:, order].astype(float)
    sick = np.add.reduceat(sorted_weights * (labels[order] == 1), first, axis=1)
    healthy = np.add.reduceat(sorted_weights * (labels[order] == 0), first, axis=1)
    below = np.cumsum(healthy, axis=1) - healthy
    pairs = sick.sum(axis=1) * healthy.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: npt.NDArray[Any] = (sick * (below + healthy / 2)).sum(axis=1) / pairs
    return area


def _interval(value: float, resampled: npt.NDArray[Any], patients: int) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    if low == high:
        # All patients right, or all wrong: resampling shows no spread, Wilson's interval does.
        interval = binomtest(round(value * patients), patients).proportion_ci(method="wilson")
        low, high = interval.low, interval.high
    return Estimate(value, float(low), float(high))
