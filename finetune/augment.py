"""Plausible variations of a radiograph, drawn anew each epoch: geometry, exposure, sharpness, compression.

No horizontal flips: the heart has a side, and a mirrored chest is a different finding (situs inversus).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import v2


def training_augmentation(size: int, strength: float = 1.0) -> v2.Transform:
    """uint8 (1, size, size) -> the same shape and dtype, varied.

    `strength` stretches every range; at 1 they are: rotation by 8 degrees, shift by 6 %, scale 0.9 to 1.15, shear by 4
    degrees, crop of 80 to 100 % of the area, brightness +-25 %, contrast +-30 %, gamma 0.7 to 1.4.

    Rotation and shift are those of a child held by hand; scale and crop those of collimation; brightness, contrast and
    gamma those of exposure and of the display curve; blur and JPEG those of the way the file took.
    """
    by = strength
    return v2.Compose(
        [
            v2.RandomAffine(
                degrees=8 * by,
                translate=(min(0.06 * by, 0.5),) * 2,
                scale=(max(0.5, 1 - 0.1 * by), 1 + 0.15 * by),
                shear=4 * by,
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
            v2.RandomResizedCrop(size, scale=(max(0.3, 1 - 0.2 * by), 1.0), ratio=(0.85**by, 1.18**by), antialias=True),
            v2.ColorJitter(brightness=min(0.25 * by, 0.9), contrast=min(0.3 * by, 0.9)),
            RandomGamma(0.7**by, 1.4**by),
            v2.RandomApply([v2.GaussianBlur(5, sigma=(0.2, 1.2))], p=min(0.2 * by, 1.0)),
            v2.RandomApply([v2.JPEG((40, 95))], p=min(0.3 * by, 1.0)),
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
