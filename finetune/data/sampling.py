"""Which radiograph is drawn when, and how it is varied: a function of seed, epoch and place in the epoch alone.

So the number of worker processes, of training processes or an interruption changes nothing about what is seen.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .augment import training_augmentation


class CachedRadiographs(Dataset[tuple[Tensor, int]]):
    """Rows of the cache with their labels, varied when asked: (uint8 (1, s, s), label).

    Args:
        images: uint8 (rows, s, s), memory-mapped.
        rows: Row of each radiograph.
        labels: Label of each radiograph.
        augmentation: Strength; 0 = off.
        degradation: How often radiographs are degraded; 0 = never. Both as in `finetune.data.augment`.
    """

    def __init__(
        self,
        images: np.ndarray,
        rows: np.ndarray,
        labels: np.ndarray,
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
        """Radiograph of an index, or of (index, seed of its variation)."""
        index, seed = drawn if isinstance(drawn, tuple) else (drawn, None)
        image = torch.from_numpy(self.images[self.rows[index]].copy())[None]
        if self.transform and seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                image = self.transform(image)
        return image, int(self.labels[index])


class EpochSampler(Sampler[tuple[int, int]]):
    """Draws one epoch: (index, seed of its variation) pairs.

    - "sampler": each draw takes either class with the same chance, with replacement.
    - "undersample": as many of each class as the smallest has, other ones each epoch.
    - "loss" and "none": every radiograph once; "loss" leaves the balance to the loss.

    With several training processes each takes every n-th of the same draws, so that together they see what one would.
    """

    def __init__(self, labels: np.ndarray, *, balance: str, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.labels, self.balance, self.seed = np.asarray(labels), balance, seed
        self.rank, self.processes, self.epoch = rank, processes, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
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

    def _draw(self, random: np.random.Generator) -> np.ndarray:
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


def class_weights(labels: np.ndarray, balance: str) -> Tensor | None:
    """Weight of each class in the loss, 1 on average over the radiographs; None where the loss weighs all alike."""
    if balance != "loss":
        return None
    counts = np.bincount(labels)
    return torch.tensor(len(labels) / (len(counts) * counts), dtype=torch.float32)
