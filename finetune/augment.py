"""Plausible variations of a radiograph, drawn anew each epoch: geometry, exposure, sharpness, compression.

No horizontal flips: the heart has a side, and a mirrored chest is a different finding (situs inversus).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


def training_augmentation(size: int) -> v2.Transform:
    """uint8 (1, size, size) -> the same shape and dtype, varied.

    Rotation and shift are those of a child held by hand; scale and crop those of collimation; brightness, contrast and
    gamma those of exposure and of the display curve; blur and JPEG those of the way the file took.
    """
    return v2.Compose(
        [
            v2.RandomAffine(
                degrees=8,
                translate=(0.06, 0.06),
                scale=(0.9, 1.15),
                shear=4,
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.RandomResizedCrop(size, scale=(0.8, 1.0), ratio=(0.85, 1.18), antialias=True),
            v2.ColorJitter(brightness=0.25, contrast=0.3),
            RandomGamma(0.7, 1.4),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.2, 1.2))], p=0.2),
            v2.RandomApply([v2.JPEG((40, 95))], p=0.3),
        ]
    )


class RandomGamma(v2.Transform):
    """Bend the grey curve by an exponent drawn log-uniformly from [low, high]."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.log_low, self.log_high = torch.tensor([low, high]).log().tolist()

    def make_params(self, flat_inputs: list[object]) -> dict[str, float]:
        """Draw the exponent."""
        return {"gamma": float(torch.empty(()).uniform_(self.log_low, self.log_high).exp())}

    def transform(self, inpt: Tensor, params: dict[str, float]) -> Tensor:
        """Apply it."""
        return v2.functional.adjust_gamma(inpt, params["gamma"])
