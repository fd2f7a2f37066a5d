"""Variations keep what a radiograph is, repeat with their seed, and can be switched off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import adjust_gamma

from finetune.data import augment
from finetune.data.augment import training_augmentation


def _radiograph() -> torch.Tensor:
    rows = torch.linspace(20, 200, 96)
    grain = torch.randint(-3, 4, (96, 96), generator=torch.Generator().manual_seed(0))  # something to sharpen
    return (rows[:, None] * 0.6 + rows[None] * 0.4 + grain).round().to(torch.uint8)[None]


def _drawn(transform: torch.nn.Module, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return transform(_radiograph())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("strength", "degradation"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (3.0, 3.0)])
def test_shape_and_type_stay_and_the_seed_decides(strength: float, degradation: float) -> None:
    transform = training_augmentation(96, strength, degradation)
    drawn = [_drawn(transform, seed) for seed in range(25)]
    assert all(image.shape == (1, 96, 96) and image.dtype == torch.uint8 for image in drawn)
    assert len({image.numpy().tobytes() for image in drawn}) > 15
    assert torch.equal(drawn[7], _drawn(transform, 7))


def test_both_off_changes_nothing() -> None:
    assert torch.equal(_drawn(training_augmentation(96, 0.0, 0.0), 1), _radiograph())


@pytest.mark.parametrize(
    "step",
    [
        augment.RandomSharpness(2.5),
        augment.RandomNoise(20),
        augment.RandomResolution(0.25),
        augment.RandomCollimation(0.12),
        augment.RandomMarker(),
    ],
)
def test_each_degradation_changes_the_radiograph_but_not_all_of_it(step: torch.nn.Module) -> None:
    differences = np.stack([(_drawn(step, s).int() - _radiograph().int()).abs().numpy() for s in range(20)])
    assert differences.any()
    # A chest stays a chest: half of the pixels are at most 20 grey levels off.
    assert np.median(differences) <= 20


def test_collimation_covers_only_the_rim() -> None:
    for seed in range(20):
        covered = _drawn(augment.RandomCollimation(0.12), seed)
        rim = round(0.12 * 96)
        assert torch.equal(covered[:, rim:-rim, rim:-rim], _radiograph()[:, rim:-rim, rim:-rim])


def test_a_marker_is_small_and_bright() -> None:
    for seed in range(20):
        changed = _drawn(augment.RandomMarker(), seed) != _radiograph()
        assert 0 < int(changed.sum()) <= (0.08 * 96 + 2) ** 2
        assert int(_drawn(augment.RandomMarker(), seed)[changed].min()) >= 180


@pytest.mark.parametrize("gamma", [0.6, 1.0, 1.7])
def test_the_grey_curve_is_torchvisions_pixel_for_pixel(gamma: float) -> None:
    image = torch.arange(256, dtype=torch.uint8).repeat(4).reshape(1, 32, 32)
    curved = augment.RandomGamma(gamma, gamma).transform(image, {"gamma": gamma})
    assert curved.dtype == torch.uint8
    assert torch.equal(curved, adjust_gamma(image, gamma))
