"""Sampling of radiographs for training: order and augmentation depend only on seed, epoch and position in the epoch.

The number of worker processes or training processes, or an interruption, does not change what the model sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .augment import training_augmentation


class CachedRadiographs(Dataset[tuple[Tensor, int]]):
    """Cached radiographs with their labels, optionally augmented: (uint8 (1, s, s), label).

    Args:
        images: uint8 (rows, s, s), memory-mapped.
        rows: Row of each radiograph.
        labels: Label of each radiograph.
        augmentation: Strength of the augmentation, as in `finetune.data.augment`; 0 = off.
        degradation: Frequency of degradations, as in `finetune.data.augment`; 0 = never.
    """

    def __init__(
        self,
        images: npt.NDArray[Any],
        rows: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        *,
        augmentation: float = 0.0,
        degradation: float = 0.0,
    ) -> None:
        self.images, self.rows, self.labels = images, rows, labels
        varied = augmentation > 0 or degradation > 0
        self.transform = training_augmentation(images.shape[-1], augmentation, degradation) if varied else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, drawn: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return the radiograph of an index, or of (index, seed of its augmentation)."""
        index, seed = drawn if isinstance(drawn, tuple) else (drawn, None)
        image = torch.from_numpy(self.images[self.rows[index]].copy())[None]
        if self.transform and seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image = self.transform(image)
        return image, int(self.labels[index])


class EpochSampler(Sampler[tuple[int, int]]):
    """Sampler of one epoch: pairs (index, seed of its augmentation).

    - "sampler": draws with replacement, both classes with the same probability.
    - "undersample": as many of each class as the smaller one has, drawn anew each epoch.
    - "loss" and "none": every radiograph once; "loss" balances the classes in the loss.

    With several training processes each takes every n-th of the same draws, so that together they see the same epoch.
    """

    def __init__(self, labels: npt.NDArray[Any], *, balance: str, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.labels, self.balance, self.seed = np.asarray(labels), balance, seed
        self.rank, self.processes, self.epoch = rank, processes, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls it before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        counts = np.bincount(self.labels)
        drawn = int(counts.min()) * len(counts) if self.balance == "undersample" else len(self.labels)
        return drawn // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        indices = self._draw(random)
        seeds = random.integers(0, 2**62, len(indices))
        mine = slice(self.rank, len(self) * self.processes, self.processes)
        yield from zip(indices[mine].tolist(), seeds[mine].tolist(), strict=True)

    def _draw(self, random: np.random.Generator) -> npt.NDArray[Any]:
        everyone = np.arange(len(self.labels))
        counts = np.bincount(self.labels)
        if self.balance == "sampler":
            chance = (1.0 / counts / len(counts))[self.labels]
            return random.choice(everyone, len(everyone), p=chance)
        if self.balance == "undersample":
            of_each = [
                random.choice(everyone[self.labels == c], counts.min(), replace=False) for c in range(len(counts))
            ]
            return random.permutation(np.concatenate(of_each))
        return random.permutation(everyone)


def class_weights(labels: npt.NDArray[Any], balance: str) -> Tensor | None:
    """Return the weight of each class in the loss, 1 on average over the radiographs; None without class weights."""
    if balance != "loss":
        return None
    counts = np.bincount(labels)
    return torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32)
