"""Calibration and decision: temperature scaling, operating point, a band for Uncertain, and novelty.

All are fitted on the validation split (novelty's Gaussian on the training split) and become part of the served graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn


@dataclass(frozen=True)
class Novelty:
    """Mahalanobis distance from the training radiographs, in the space of the tower's mean features.

    Attributes:
        centre: float32 (channels,), mean of the training features.
        whitening: float32 (channels, channels); |(x - centre) @ whitening| is the distance.
        limit: Distance that corresponds to a novelty of 1.0.
    """

    centre: Tensor
    whitening: Tensor
    limit: float


@dataclass(frozen=True)
class Calibration:
    """Logits -> probability of Pneumonia, sigmoid((logit(Pneumonia) - logit(Normal) + bias) / temperature).

    Attributes:
        temperature: Values above 1 move probabilities towards 0.5, values below 1 away from it.
        bias: Log-odds in favour of Pneumonia.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def probability(self, logits: Tensor) -> Tensor:
        """Convert logits (n, 2) to the probability of Pneumonia (n,)."""
        return torch.sigmoid((logits[:, 1] - logits[:, 0] + self.bias) / self.temperature)


@dataclass(frozen=True)
class DecisionRule:
    """Parameters that turn logits into probability, finding and novelty.

    Attributes:
        calibration: Calibration of the logits.
        operating_point: Probability from which a forced choice is Pneumonia.
        band: Range of probabilities, [low, high), in which the finding is Uncertain.
        coverage: Share of radiographs of each class whose conformal set contains the true label.
        novelty: Model of the training radiographs.
    """

    calibration: Calibration
    operating_point: float
    band: tuple[float, float]
    coverage: float
    novelty: Novelty

    @classmethod
    def neutral(cls, channels: int) -> DecisionRule:
        """Return a rule without calibration, with an empty band and a novelty that is the distance from zero."""
        return cls(Calibration(), 0.5, (0.5, 0.5), 0.0, Novelty(torch.zeros(channels), torch.eye(channels), 1.0))


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit temperature and bias by cross-entropy, with equal weight for both classes (Platt 1999).

    Temperature alone (Guo et al. 2017) cannot correct a network that is biased towards one class. The targets are
    Platt's, (n + 1) / (n + 2) and 1 / (n + 2) for n radiographs of the class, so that perfect separation of a small
    validation split does not lead to overconfidence.

    Args:
        logits: float (n, 2), of the validation split.
        labels: int (n,).
    """
    margin = (logits[:, 1] - logits[:, 0]).double()
    count = torch.bincount(labels, minlength=2).double()
    target = torch.where(labels == 1, (count[1] + 1) / (count[1] + 2), 1 / (count[0] + 2))
    weight = (1 / count.clamp_min(1))[labels]
    log_temperature, bias = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.LBFGS([log_temperature, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(
            (margin + bias) / log_temperature.exp(), target, weight=weight, reduction="sum"
        )
        value.backward()
        return value

    optimizer.step(loss)
    temperature = float(np.clip(log_temperature.exp().item(), 0.05, 20.0))
    return Calibration(temperature, float(np.clip(bias.item(), -50.0, 50.0)))


def operating_point(probability: npt.NDArray[Any], labels: npt.NDArray[Any], *, sensitivity: float) -> float:
    """Find the highest threshold that keeps the given sensitivity.

    It lies halfway to the next lower pneumonia, so that no radiograph is exactly at the threshold.
    """
    pneumonia = np.sort(probability[labels == 1])
    missed = math.floor((1 - sensitivity) * len(pneumonia) + 1e-9)
    return _just_below(pneumonia, missed)


def balanced_point(probability: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    """Find the threshold at which sensitivity and specificity are closest; it does not depend on the class balance.

    It lies halfway between two radiographs in log-odds; of several equally good ones, the middle one is taken.
    """
    p = np.clip(probability.astype(np.float64), 1e-9, 1 - 1e-9)
    log_odds = np.log(p) - np.log1p(-p)
    distinct = np.unique(log_odds)
    if len(distinct) < 2:
        return float(probability[0])
    between = (distinct[1:] + distinct[:-1]) / 2
    missed = np.searchsorted(np.sort(log_odds[labels == 1]), between) / (labels == 1).sum()
    alarms = 1 - np.searchsorted(np.sort(log_odds[labels == 0]), between) / (labels == 0).sum()
    worst = np.maximum(missed, alarms)
    best = between[np.isclose(worst, worst.min())]
    return float(1 / (1 + np.exp(-best[len(best) // 2])))


def conformal_band(
    probability: npt.NDArray[Any], labels: npt.NDArray[Any], threshold: float, *, coverage: float
) -> tuple[tuple[float, float], float]:
    """Fit class-conditional split-conformal prediction for two classes, expressed as a band of probabilities.

    The set of a radiograph contains Pneumonia if its probability p >= a, and Normal if p <= b, with a and b the
    quantiles that exclude at most 1 - coverage of each class, finite-sample corrected (Vovk 2012, label-conditional).
    Two labels in the set, or none, mean Uncertain: that is p between a and b, whichever is larger. The band is widened
    to contain the operating point, so that the decision never contradicts it.

    Returns:
        (low, high), and the coverage used: the largest that the number of radiographs allows, up to the requested one.
    """
    counts = np.bincount(labels, minlength=2)
    # n radiographs of a class guarantee a coverage of at most n / (n + 1).
    coverage = min(coverage, float(counts.min() / (counts.min() + 1)))
    pneumonia, normal = np.sort(probability[labels == 1]), np.sort(1 - probability[labels == 0])
    a = _just_below(pneumonia, len(pneumonia) - math.ceil((len(pneumonia) + 1) * coverage - 1e-9))
    b = 1 - _just_below(normal, len(normal) - math.ceil((len(normal) + 1) * coverage - 1e-9))
    return (min(a, b, threshold), max(a, b, threshold)), coverage


def _just_below(ascending: npt.NDArray[Any], position: int) -> float:
    """Return a threshold that keeps the value at `position` and all above it."""
    value = float(ascending[position])
    lower = ascending[ascending < value]
    below = float(lower[-1]) if len(lower) else max(0.0, value - 1e-3)
    return (value + below) / 2


def fit_novelty(train: npt.NDArray[Any], val: npt.NDArray[Any], *, quantile: float = 0.99) -> Novelty:
    """Fit a Gaussian to the training features, scaled so that a quantile of validation has a novelty of 1.0.

    Args:
        train: float (n, channels), mean features of the training radiographs, without augmentation.
        val: float (m, channels), mean features of the validation radiographs.
        quantile: Share of validation radiographs within the limit.
    """
    # Ledoit-Wolf shrinkage keeps the covariance invertible with fewer radiographs than channels.
    gaussian = LedoitWolf().fit(train.astype(np.float64))
    values, vectors = np.linalg.eigh(gaussian.covariance_)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-12))
    distance = np.linalg.norm((val - gaussian.location_) @ whitening, axis=1)
    return Novelty(
        torch.from_numpy(gaussian.location_.astype(np.float32)),
        torch.from_numpy(whitening.astype(np.float32)),
        float(np.quantile(distance, quantile)),
    )
