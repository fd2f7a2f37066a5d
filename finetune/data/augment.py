"""Augmentation of radiographs, drawn anew each epoch: geometry, exposure, sharpness, compression.

No horizontal flips: the heart has a side, and a mirrored chest is a different finding (situs inversus).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


def training_augmentation(size: int, strength: float = 1.0, degradation: float = 0.0) -> v2.Transform:
    """Build the training augmentation: uint8 (1, size, size) -> the same shape and dtype.

    Args:
        size: Side of the radiograph, in pixels.
        strength: Factor on the ranges of the variations, which at 1 are: rotation by 8 degrees, shift by 6 %, scale 0.9
            to 1.15, shear by 4 degrees, crop of 80 to 100 % of the area, brightness +-25 %, contrast +-30 %, gamma 0.7
            to 1.4; slight blur, JPEG quality 40 to 95. 0 = off.
        degradation: Factor on the frequency of degradations that make a radiograph look like another archive's: display
            curve, resolution, noise, compression, collimation, a marker, a tilted child; see `_degradations`.
            0 = never.

    Rotation and shift imitate a child held by hand; scale and crop imitate collimation; brightness, contrast and gamma
    imitate exposure and display curve; blur and JPEG imitate processing and storage.
    """
    steps: list[v2.Transform] = []
    if strength:
        steps += _variations(size, strength)
    if degradation:
        steps += _degradations(size, degradation)
    return v2.Compose(steps) if steps else v2.Identity()


def _variations(size: int, by: float) -> list[v2.Transform]:
    return [
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


def _degradations(size: int, by: float) -> list[v2.Transform]:
    """Build the degradations that distinguish hospitals, machines and archives, and must not distinguish the classes.

    Each one applies independently to the stated share of radiographs, times `by`.
    """
    crop = v2.RandomResizedCrop(size, scale=(0.6, 1.0), ratio=(0.7, 1.43), antialias=True)
    steps: list[tuple[float, v2.Transform]] = [
        (0.3, v2.RandomRotation(18, interpolation=v2.InterpolationMode.BILINEAR)),
        (0.3, crop),
        (0.3, v2.ColorJitter(brightness=0.4, contrast=0.4)),
        (0.3, RandomGamma(0.6, 1.7)),
        (0.1, v2.RandomAutocontrast(p=1.0)),
        (0.1, v2.RandomEqualize(p=1.0)),
        (0.3, RandomSharpness(2.5)),
        (0.2, RandomResolution(0.25)),
        (0.3, RandomNoise(20.0)),
        (0.3, v2.JPEG((12, 50))),
        (0.2, RandomCollimation(0.12)),
        (0.2, RandomMarker()),
    ]
    return [v2.RandomApply([step], p=min(share * by, 1.0)) for share, step in steps]


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
        curve = F.adjust_gamma(torch.arange(256, dtype=torch.uint8)[None, None], params["gamma"]).flatten()
        return curve[inpt.int()]  # 256 powers instead of one for each pixel


class RandomSharpness(v2.Transform):
    """Sharpen or soften by a factor drawn from [0, most]; 1 = unchanged."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[object]) -> dict[str, float]:
        """Draw the factor."""
        return {"factor": _uniform(0.0, self.most)}

    def transform(self, inpt: Tensor, params: dict[str, float]) -> Tensor:
        """Apply it."""
        return F.adjust_sharpness(inpt, params["factor"])


class RandomNoise(v2.Transform):
    """Add Gaussian noise of a standard deviation drawn from [0, most] grey levels."""

    def __init__(self, most: float) -> None:
        super().__init__()
        self.most = most

    def make_params(self, flat_inputs: list[object]) -> dict[str, float]:
        """Draw the deviation."""
        return {"sigma": _uniform(0.0, self.most)}

    def transform(self, inpt: Tensor, params: dict[str, float]) -> Tensor:
        """Add the noise."""
        noisy = inpt + params["sigma"] * torch.randn(inpt.shape)
        return noisy.round().clamp(0, 255).to(inpt.dtype)


class RandomResolution(v2.Transform):
    """Shrink to a share of the size drawn from [least, 1] and enlarge again, as if recorded at low resolution."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def make_params(self, flat_inputs: list[object]) -> dict[str, float]:
        """Draw the share."""
        return {"share": _uniform(self.least, 1.0)}

    def transform(self, inpt: Tensor, params: dict[str, float]) -> Tensor:
        """Shrink and stretch."""
        size = list(inpt.shape[-2:])
        small = [max(8, round(side * params["share"])) for side in size]
        return F.resize(F.resize(inpt, small, antialias=True), size, antialias=True)


class RandomCollimation(v2.Transform):
    """Cover up to `widest` of the image along each of some sides, in black, white or grey."""

    def __init__(self, widest: float) -> None:
        super().__init__()
        self.widest = widest

    def make_params(self, flat_inputs: list[object]) -> dict[str, Any]:
        """Draw sides, widths and grey level."""
        widths = [_uniform(0.0, self.widest) if _uniform(0, 1) < 0.5 else 0.0 for _ in range(4)]
        grey = int(torch.randint(256, ())) if _uniform(0, 1) < 0.3 else 255 * int(_uniform(0, 1) < 0.2)
        return {"widths": widths, "grey": grey}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Cover them."""
        height, width = inpt.shape[-2:]
        widths: list[float] = params["widths"]
        top, bottom, left, right = (
            round(w * side) for w, side in zip(widths, (height, height, width, width), strict=True)
        )
        covered = torch.full_like(inpt, params["grey"])
        inside = (..., slice(top, height - bottom), slice(left, width - right))
        covered[inside] = inpt[inside]
        return covered


class RandomMarker(v2.Transform):
    """Draw a bright bar of 2 to 8 % of the side near the rim, like lead letters and labels."""

    def make_params(self, flat_inputs: list[object]) -> dict[str, Any]:
        """Draw place, extent and grey level."""
        extent = [_uniform(0.02, 0.08) for _ in range(2)]
        along, across = _uniform(0.0, 0.9), _uniform(0.0, 0.12)
        if _uniform(0, 1) < 0.5:
            across = 0.92 - across
        place = [along, across] if _uniform(0, 1) < 0.5 else [across, along]
        return {"extent": extent, "place": place, "grey": int(torch.randint(180, 256, ()))}

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """Draw it."""
        place: list[float] = params["place"]
        extent: list[float] = params["extent"]
        (y, x), (h, w) = (
            [round(share * side) for share, side in zip(of, inpt.shape[-2:], strict=True)] for of in (place, extent)
        )
        marked = inpt.clone()
        marked[..., y : y + h + 1, x : x + w + 1] = params["grey"]
        return marked


def _uniform(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))
