"""Check of the evidence: masking the patches that hold most of it must lower the log-odds more than random masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .predictors import Predictor

MASKED_SHARE = 5  # one patch in this many is masked
RANDOM_MASKS = 5


def masking_check(
    predictor: Predictor, images: NDArray[Any], labels: NDArray[Any], patients: NDArray[Any], *, seed: int = 0
) -> dict[str, Any] | None:
    """Mask the fifth of the patches with the most evidence, and random fifths, and compare the falls of the log-odds.

    Masked patches take the radiograph's mean grey. Only radiographs of Pneumonia count.

    Args:
        predictor: Model to check.
        images: uint8 (n, s, s).
        labels: int (n,).
        patients: str (n,).
        seed: Seed of the random masks and of the bootstrap.

    Returns:
        Mean falls of the log-odds of Pneumonia, their difference with its interval over patients, and the share of
        radiographs in which the patches with the most evidence mattered more; None without radiographs of Pneumonia.
    """
    images, patients = images[labels == 1], patients[labels == 1]
    if not len(images):
        return None
    whole = predictor.predict(images, "heatmaps")
    patches = whole.heatmap[0].size
    masked = max(1, patches // MASKED_SHARE)
    random = np.random.default_rng(seed)

    def fall(chosen: NDArray[Any], description: str) -> NDArray[Any]:
        """Mask patches (n, masked) and return the fall of the log-odds (n,)."""
        hidden = np.zeros((len(images), patches), dtype=bool)
        np.put_along_axis(hidden, chosen, values=True, axis=1)
        rows, columns = (np.arange(images.shape[1]) * side // images.shape[1] for side in whole.heatmap.shape[1:])
        mask = hidden.reshape(whole.heatmap.shape)[:, rows][:, :, columns]
        mean = images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
        return _log_odds(whole.probability) - _log_odds(
            predictor.predict(np.where(mask, mean, images), description).probability
        )

    hottest = np.argsort(whole.heatmap.reshape(len(images), -1), axis=1)[:, -masked:]
    fall_hottest = fall(hottest, "masking the hottest fifth")
    picks = [random.permuted(np.tile(np.arange(patches), (len(images), 1)), axis=1) for _ in range(RANDOM_MASKS)]
    fall_random = np.mean([fall(pick[:, :masked], "masking random fifths") for pick in picks], axis=0)
    difference = fall_hottest - fall_random
    _, index = np.unique(patients, return_inverse=True)
    count = index.max() + 1
    weights = random.multinomial(count, np.full(count, 1 / count), size=1000)[:, index]
    low, high = np.quantile((weights @ difference) / weights.sum(axis=1), [0.025, 0.975])
    return {
        "radiographs": len(images),
        "patches_masked": f"{masked} of {patches}",
        "fall_hottest": round(float(fall_hottest.mean()), 4),
        "fall_random": round(float(fall_random.mean()), 4),
        "difference": {"value": round(float(difference.mean()), 4), "low": round(low, 4), "high": round(high, 4)},
        "hottest_mattered_more": round(float((difference > 0).mean()), 4),
    }


def _log_odds(probability: NDArray[Any]) -> NDArray[Any]:
    p = np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)
