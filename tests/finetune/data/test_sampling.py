"""What is drawn in an epoch depends on seed, epoch and balance, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from finetune.data.sampling import CachedRadiographs, EpochSampler, class_weights
from finetune.settings import BALANCES

LABELS = np.array([0] * 60 + [1] * 240)


def _epoch(balance: str, *, seed: int = 0, epoch: int = 0, **processes: int) -> list[tuple[int, int]]:
    sampler = EpochSampler(LABELS, balance=balance, seed=seed, **processes)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


@pytest.mark.parametrize("balance", BALANCES)
def test_an_epoch_repeats_with_its_seed_and_differs_from_the_next(balance: str) -> None:
    assert _epoch(balance) == _epoch(balance)
    assert _epoch(balance) != _epoch(balance, epoch=1)
    assert _epoch(balance) != _epoch(balance, seed=1)


def test_the_sampler_draws_both_classes_equally_often() -> None:
    shares = [np.mean([LABELS[index] for index, _ in _epoch("sampler", epoch=epoch)]) for epoch in range(20)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.03)


def test_undersampling_takes_as_many_as_the_smaller_class_has_and_others_each_epoch() -> None:
    first, second = ({index for index, _ in _epoch("undersample", epoch=epoch)} for epoch in (0, 1))
    assert sorted(LABELS[list(first)]) == [0] * 60 + [1] * 60
    assert {i for i in first if LABELS[i]} != {i for i in second if LABELS[i]}


@pytest.mark.parametrize("balance", ["loss", "none"])
def test_without_resampling_every_radiograph_is_seen_once(balance: str) -> None:
    assert sorted(index for index, _ in _epoch(balance)) == list(range(len(LABELS)))


@pytest.mark.parametrize("balance", BALANCES)
def test_several_processes_see_together_what_one_would(balance: str) -> None:
    together = [_epoch(balance, rank=rank, processes=3) for rank in range(3)]
    one = _epoch(balance)
    interleaved = [draw for draws in zip(*together, strict=True) for draw in draws]
    assert interleaved == one[: len(interleaved)]
    assert len(one) - len(interleaved) < 3


def test_the_loss_gives_both_classes_the_same_say() -> None:
    weights = class_weights(LABELS, "loss")
    assert weights is not None
    assert weights[0] * 60 == pytest.approx(weights[1] * 240)
    assert (weights[0] * 60 + weights[1] * 240) / 300 == pytest.approx(1)
    assert class_weights(LABELS, "sampler") is None


def test_the_number_of_workers_changes_nothing_about_what_is_seen() -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64), dtype=np.uint8)
    dataset = CachedRadiographs(images, np.arange(12), np.arange(12) % 2, augmentation=1.0)

    def epoch(workers: int) -> torch.Tensor:
        sampler = EpochSampler(dataset.labels, balance="none", seed=3)
        return torch.cat(
            [batch for batch, _ in DataLoader(dataset, batch_size=5, sampler=sampler, num_workers=workers)]
        )

    seen = epoch(0)
    torch.manual_seed(99)
    torch.testing.assert_close(epoch(2), seen, rtol=0, atol=0)
    assert not torch.equal(seen[0, 0], torch.from_numpy(images[0])), "augmentation is on"


def test_drawing_a_variation_leaves_the_global_random_state_alone() -> None:
    dataset = CachedRadiographs(np.zeros((1, 64, 64), np.uint8), np.arange(1), np.arange(1), augmentation=1.0)
    before = torch.get_rng_state()
    dataset[0, 7]
    torch.testing.assert_close(torch.get_rng_state(), before)
