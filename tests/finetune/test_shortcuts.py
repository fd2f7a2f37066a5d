"""Probes find a feature that separates the classes, and stay near 0.5 without one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from finetune.shortcuts import PROBES, probe_aurocs

_SIZE, _COUNT = 64, 120


def _bright_rim(image: np.ndarray) -> np.ndarray:
    image[:6] = 250
    return image


def _darker(image: np.ndarray) -> np.ndarray:
    return image * 0.7


def _blurred(image: np.ndarray) -> np.ndarray:
    return gaussian_filter(image, 1.0)


def _blocks(image: np.ndarray) -> np.ndarray:
    return image + 12 * ((np.indices(image.shape) // 8).sum(axis=0) % 2)


def _set(change: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = np.arange(_COUNT) % 2
    images = [gaussian_filter(random.normal(128, 60, (_SIZE, _SIZE)), 0.7) for _ in labels]
    changed = [change(image) if label else image for image, label in zip(images, labels, strict=True)]
    return (
        np.clip(changed, 0, 255).astype(np.uint8),
        labels,
        np.array([f"p{i // 2 * 2 + i % 2}" for i in range(_COUNT)]),
    )


@pytest.mark.parametrize(
    ("change", "probe"),
    [(_bright_rim, "rim"), (_darker, "grey levels"), (_blurred, "sharpness"), (_blocks, "blockiness")],
)
def test_each_probe_finds_its_feature(change: Callable[[np.ndarray], np.ndarray], probe: str) -> None:
    assert probe_aurocs(*_set(change))[probe] > 0.95


def test_nothing_is_found_where_nothing_is() -> None:
    found = probe_aurocs(*_set(lambda image: image))
    assert found.keys() == PROBES.keys()
    assert all(0.25 < auroc < 0.75 for auroc in found.values())
