"""Robustness of a predictor to changes of exposure, sharpness, pose and file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .predictors import Predictor

Change = Callable[[Tensor, float], Tensor]


def _noise(image: Tensor, level: float) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return (image + level * torch.randn(image.shape, generator=random)).round().clamp(0, 255).to(torch.uint8)


# Name -> (unit of the level, change, levels in rising order); one level leaves the image as it is.
CHANGES: Mapping[str, tuple[str, Change, tuple[float, ...]]] = {
    "brightness": ("factor", F.adjust_brightness, (0.6, 0.8, 1.0, 1.2, 1.4)),
    "contrast": ("factor", F.adjust_contrast, (0.6, 0.8, 1.0, 1.2, 1.4)),
    "gamma": ("exponent", F.adjust_gamma, (0.6, 0.8, 1.0, 1.25, 1.6)),
    "blur": ("sigma, pixels", lambda i, s: F.gaussian_blur(i, [9, 9], [s, s]) if s else i, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "noise": ("sigma, grey levels", _noise, (0.0, 4.0, 8.0, 16.0)),
    "rotation": (
        "degrees",
        lambda i, d: F.rotate(i, d, interpolation=InterpolationMode.BILINEAR),
        (-15.0, -7.0, 0.0, 7.0, 15.0),
    ),
    "JPEG": (
        "quality, 100 = untouched",
        lambda i, q: F.jpeg(i, int(q)) if q < 100 else i,
        (10.0, 20.0, 40.0, 70.0, 100.0),
    ),
}  # fmt: skip


def robustness(predictor: Predictor, images: NDArray[Any], labels: NDArray[Any], threshold: float) -> dict[str, Any]:
    """Measure AUROC, sensitivity and specificity at the operating point while the prepared radiographs are changed.

    Args:
        predictor: Model to check.
        images: uint8 (n, s, s).
        labels: int (n,).
        threshold: Operating point.

    Returns:
        Change -> {"unit", "levels", and a list of values for each of "auroc", "sensitivity", "specificity"}.
    """
    found: dict[str, Any] = {}
    for name, (unit, change, levels) in CHANGES.items():
        rows = []
        for level in levels:
            changed = np.stack([change(torch.from_numpy(image)[None], level)[0].numpy() for image in images])
            probability = predictor.predict(changed, f"{name} {level:g}").probability
            positive = probability >= threshold
            auroc = roc_auc_score(labels, probability) if 0 < labels.mean() < 1 else float("nan")
            rows.append((auroc, positive[labels == 1].mean(), (~positive[labels == 0]).mean()))
        columns = np.array(rows, dtype=float).round(4).T.tolist()
        found[name] = {"unit": unit, "levels": list(levels)}
        found[name] |= dict(zip(("auroc", "sensitivity", "specificity"), columns, strict=True))
    return {"radiographs": len(images), "changes": found}
