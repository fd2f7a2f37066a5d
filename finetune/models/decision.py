"""What a probability is worth: calibration, operating point, a band for Uncertain, and novelty.

All of it is fitted on the validation part (novelty's Gaussian on the training part) and ends up in the served graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor, nn


@dataclass(frozen=True)
class Novelty:
    """Mahalanobis distance from the training radiographs, in the space of the tower's mean features.

    Attributes:
        centre: float32 (channels,), mean of the training features.
        whitening: float32 (channels, channels); |(x - centre) @ whitening| is the distance.
        limit: Distance that counts as 1.0.
    """

    centre: Tensor
    whitening: Tensor
    limit: float


@dataclass(frozen=True)
class Calibration:
    """Logits -> probability of Pneumonia, sigmoid((logit(Pneumonia) - logit(Normal) + bias) / temperature).

    Attributes:
        temperature: Above 1 makes answers more timid, below 1 surer.
        bias: Log-odds in favour of Pneumonia.
    """

    temperature: float = 1.0
    bias: float = 0.0

    def probability(self, logits: Tensor) -> Tensor:
        """Logits (n, 2) -> probability of Pneumonia (n,)."""
        return torch.sigmoid((logits[:, 1] - logits[:, 0] + self.bias) / self.temperature)


@dataclass(frozen=True)
class DecisionRule:
    """Everything that turns logits into an answer.

    Attributes:
        calibration: See `Calibration`.
        operating_point: Probability of Pneumonia from which a forced choice says Pneumonia.
        band: Between these probabilities, [low, high), the decision is Uncertain.
        coverage: Share of radiographs of each class whose conformal set holds the truth.
        novelty: See `Novelty`.
    """

    calibration: Calibration
    operating_point: float
    band: tuple[float, float]
    coverage: float
    novelty: Novelty

    @classmethod
    def neutral(cls, channels: int) -> DecisionRule:
        """Values that change nothing."""
        return cls(Calibration(), 0.5, (0.5, 0.5), 0.0, Novelty(torch.zeros(channels), torch.eye(channels), 1.0))


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Temperature and bias with the lowest cross-entropy, each class weighing the same (Platt 1999).

    Temperature alone (Guo et al. 2017) cannot mend a network whose errors lean to one side. The targets are Platt's,
    (n + 1) / (n + 2) and 1 / (n + 2) for n radiographs of the class, so that classes which a small validation part
    separates perfectly do not buy certainty.

    Args:
        logits: float (n, 2), of the validation part.
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


def operating_point(probability: np.ndarray, labels: np.ndarray, *, sensitivity: float) -> float:
    """The highest threshold that still finds `sensitivity` of the pneumonias.

    Halfway to the next lower pneumonia, so that no radiograph sits on the threshold itself.
    """
    pneumonia = np.sort(probability[labels == 1])
    missed = math.floor((1 - sensitivity) * len(pneumonia) + 1e-9)
    return _just_below(pneumonia, missed)


def balanced_point(probability: np.ndarray, labels: np.ndarray) -> float:
    """The threshold at which sensitivity and specificity are nearest to each other; depends on no class mix.

    Halfway between two radiographs in log-odds; of several that are as good, the middle one.
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
    probability: np.ndarray, labels: np.ndarray, threshold: float, *, coverage: float
) -> tuple[tuple[float, float], float]:
    """Class-conditional split-conformal prediction for two classes, as a band of probabilities.

    The set of a radiograph holds Pneumonia if its probability p >= a, and Normal if p <= b, with a and b the quantiles
    that leave out at most 1 - coverage of each class, finite-sample corrected (Vovk 2012, label-conditional). Two
    labels in the set, or none, mean Uncertain: that is p between a and b, whichever is larger. The band is widened to
    hold the operating point, so that the decision never contradicts it.

    Returns:
        (low, high), and the coverage used: with few radiographs of a class the one asked for cannot be promised, and
        the greatest that can is taken.
    """
    counts = np.bincount(labels, minlength=2)
    # n radiographs of a class can promise at most n / (n + 1).
    coverage = min(coverage, float(counts.min() / (counts.min() + 1)))
    pneumonia, normal = np.sort(probability[labels == 1]), np.sort(1 - probability[labels == 0])
    a = _just_below(pneumonia, len(pneumonia) - math.ceil((len(pneumonia) + 1) * coverage - 1e-9))
    b = 1 - _just_below(normal, len(normal) - math.ceil((len(normal) + 1) * coverage - 1e-9))
    return (min(a, b, threshold), max(a, b, threshold)), coverage


def _just_below(ascending: np.ndarray, position: int) -> float:
    """A threshold that keeps the value at `position` and all above it."""
    value = float(ascending[position])
    lower = ascending[ascending < value]
    below = float(lower[-1]) if len(lower) else max(0.0, value - 1e-3)
    return (value + below) / 2


def fit_novelty(train: np.ndarray, val: np.ndarray, *, quantile: float = 0.99) -> Novelty:
    """Gaussian of the training features, with the validation part's quantile at 1.0.

    Args:
        train: float (n, channels), mean features of the training radiographs, not augmented.
        val: float (m, channels).
        quantile: Share of validation radiographs that count as familiar.
    """
    # Ledoit and Wolf's shrinkage keeps the covariance invertible with fewer radiographs than channels.
    gaussian = LedoitWolf().fit(train.astype(np.float64))
    values, vectors = np.linalg.eigh(gaussian.covariance_)
    whitening = vectors / np.sqrt(np.maximum(values, 1e-12))
    distance = np.linalg.norm((val - gaussian.location_) @ whitening, axis=1)
    return Novelty(
        torch.from_numpy(gaussian.location_.astype(np.float32)),
        torch.from_numpy(whitening.astype(np.float32)),
        float(np.quantile(distance, quantile)),
    )
