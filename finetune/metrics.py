"""Figures with their uncertainty: each value has a 95 % interval from resampling patients, not images.

Images of one patient resemble each other, so an interval over images would promise too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, roc_auc_score

RESAMPLES = 1000
_NORMAL_QUANTILE = 1.959964  # of 97.5 %


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's probabilities on one split.

    Attributes:
        probability: float (n,), of Pneumonia.
        labels: int (n,).
        patients: (n,), who each radiograph is of.
        threshold: Probability from which it counts as Pneumonia.
    """

    probability: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    threshold: float

    @property
    def predicted(self) -> np.ndarray:
        """int (n,), 1 = Pneumonia."""
        return (self.probability >= self.threshold).astype(int)

    @property
    def confusion(self) -> np.ndarray:
        """int (2, 2): rows are the truth, columns the prediction."""
        return confusion_matrix(self.labels, self.predicted, labels=[0, 1])


def summarise(scores: Scores, *, seed: int = 0) -> dict[str, Any]:
    """Accuracy, sensitivity, specificity and AUROC, each as {value, low, high}, with the counts behind them."""
    correct = (scores.predicted == scores.labels).astype(float)
    everyone, sick, healthy = np.ones_like(correct), scores.labels == 1, scores.labels == 0
    weights = _patient_weights(scores.patients, seed)
    estimates = {
        "accuracy": _share(correct, everyone, weights, scores.patients),
        "sensitivity": _share(correct, sick.astype(float), weights, scores.patients),
        "specificity": _share(correct, healthy.astype(float), weights, scores.patients),
        "auroc": _auroc(scores, weights),
    }
    return {
        **{
            name: {"value": round(e.value, 6), "low": round(e.low, 6), "high": round(e.high, 6)}
            for name, e in estimates.items()
        },
        "threshold": scores.threshold,
        "images": len(scores.labels),
        "patients": len(np.unique(scores.patients)),
        "confusion": scores.confusion.tolist(),
    }


def _patient_weights(patients: np.ndarray, seed: int) -> np.ndarray:
    """How often each image counts in each resample: int (RESAMPLES, n)."""
    _, index = np.unique(patients, return_inverse=True)
    count = index.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn[:, index]


def _share(hit: np.ndarray, among: np.ndarray, weights: np.ndarray, patients: np.ndarray) -> Estimate:
    value = float((hit * among).sum() / among.sum())
    total = weights @ among
    resampled = (weights @ (hit * among))[total > 0] / total[total > 0]
    return _interval(value, resampled, len(np.unique(patients[among > 0])))


def _auroc(scores: Scores, weights: np.ndarray) -> Estimate:
    def auroc(weight: np.ndarray) -> float:
        return float(roc_auc_score(scores.labels, scores.probability, sample_weight=weight))

    both: Callable[[np.ndarray], bool] = lambda w: all((w[scores.labels == label] > 0).any() for label in (0, 1))  # noqa: E731
    resampled = np.array([auroc(weight) for weight in weights if both(weight)])
    smaller = min(len(np.unique(scores.patients[scores.labels == label])) for label in (0, 1))
    return _interval(auroc(np.ones(len(scores.labels))), resampled, smaller)


def _interval(value: float, resampled: np.ndarray, patients: int) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    if low == high:
        # No errors (or nothing else) to resample: Wilson's interval for that many patients (Wilson 1927).
        low, high = _wilson(value, patients)
    return Estimate(value, float(low), float(high))


def _wilson(share: float, n: int) -> tuple[float, float]:
    z = _NORMAL_QUANTILE
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
