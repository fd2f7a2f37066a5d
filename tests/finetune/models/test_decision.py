"""Calibration, operating point, Uncertain and novelty."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.models.decision import balanced_point, conformal_band, fit_calibration, fit_novelty, operating_point


def _scores(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping probabilities of Pneumonia with their labels."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.7).astype(int)
    return 1 / (1 + np.exp(-(rng.normal(0, 1.2, n) + 2.4 * labels - 1.2))), labels


def test_temperature_finds_how_overconfident_the_logits_are() -> None:
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < 1 / (1 + np.exp(-margin))).astype(int)
    logits = torch.tensor(np.stack([np.zeros_like(margin), 3 * margin], axis=1), dtype=torch.float32)
    found = fit_calibration(logits, torch.tensor(labels))
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    assert found.bias == pytest.approx(0.0, abs=0.3)


def test_bias_finds_which_side_the_logits_lean_to_whatever_the_class_mix() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random(40_000) < 0.2).astype(int)
    # Two normal densities of one width, centred on -+1: the log-odds at x are 2 x, for classes equally common.
    margin = rng.normal(2.0 * labels - 1.0, 1.0)
    logits = torch.tensor(np.stack([np.zeros_like(margin), 2 * margin - 1.5], axis=1), dtype=torch.float32)
    found = fit_calibration(logits, torch.tensor(labels))
    assert found.temperature == pytest.approx(1.0, rel=0.05)
    assert found.bias == pytest.approx(1.5, abs=0.1)
    assert found.probability(torch.tensor([[0.0, -1.5]])).item() == pytest.approx(0.5, abs=0.03)


def test_separable_logits_do_not_drive_the_temperature_to_zero() -> None:
    logits = torch.tensor([[5.0, -5.0]] * 10 + [[-5.0, 5.0]] * 10)
    found = fit_calibration(logits, torch.tensor([0] * 10 + [1] * 10))
    probability = found.probability(logits)
    assert 0.01 < probability.min() < 0.2
    assert 0.8 < probability.max() < 0.99


@pytest.mark.parametrize("sensitivity", [0.9, 0.95, 0.98, 1.0])
def test_the_operating_point_is_the_highest_that_keeps_the_sensitivity(sensitivity: float) -> None:
    probability, labels = _scores(500)
    threshold = operating_point(probability, labels, sensitivity=sensitivity)
    pneumonia = np.sort(probability[labels == 1])
    found = np.mean(pneumonia >= threshold)
    assert found >= sensitivity
    next_higher = pneumonia[pneumonia > threshold][0] + 1e-9
    assert np.mean(pneumonia >= next_higher) < sensitivity
    assert threshold not in probability


def test_conformal_sets_hold_the_truth_as_often_as_stated_on_new_radiographs() -> None:
    covered: list[float] = []
    for seed in range(60):
        probability, labels = _scores(400, seed)
        (low, high), coverage = conformal_band(probability, labels, 0.5, coverage=0.9)
        assert coverage == 0.9
        new, truth = _scores(2000, seed + 1000)
        wrong = ((new >= high) & (truth == 0)) | ((new < low) & (truth == 1))
        covered.append(1 - float(wrong.mean()))
    assert np.mean(covered) >= 0.9


def test_the_band_always_holds_the_operating_point() -> None:
    probability, labels = _scores(400)
    for threshold in (0.01, 0.5, 0.99):
        (low, high), _ = conformal_band(probability, labels, threshold, coverage=0.9)
        assert low <= threshold <= high


def test_few_radiographs_promise_only_the_coverage_that_they_can() -> None:
    probability, labels = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), np.array([0, 0, 0, 1, 1, 1])
    _, coverage = conformal_band(probability, labels, 0.5, coverage=0.95)
    assert coverage == pytest.approx(0.75)


def test_novelty_is_one_at_the_edge_of_the_familiar_and_large_far_away() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(40, 40))
    train, val = rng.normal(size=(600, 40)) @ mixing, rng.normal(size=(300, 40)) @ mixing
    novelty = fit_novelty(train, val)

    def of(x: np.ndarray) -> np.ndarray:
        centred = torch.tensor(x, dtype=torch.float32) - novelty.centre
        return ((centred @ novelty.whitening).norm(dim=1) / novelty.limit).numpy()

    assert np.mean(of(val) <= 1) == pytest.approx(0.99, abs=0.005)
    assert of(rng.normal(size=(50, 40)) @ rng.normal(size=(40, 40)) * 3).min() > 1


def test_the_balanced_point_misses_as_many_of_each_class() -> None:
    random = np.random.default_rng(0)
    labels = np.r_[np.zeros(400, int), np.ones(100, int)]
    probability = 1 / (1 + np.exp(-random.normal(np.where(labels == 1, 2.0, -3.0), 1.5)))
    threshold = balanced_point(probability, labels)
    missed, alarms = (probability[labels == 1] < threshold).mean(), (probability[labels == 0] >= threshold).mean()
    assert abs(missed - alarms) <= 0.02
    # Ten times as many of one class: the same radiographs, the same threshold.
    again = balanced_point(
        np.r_[probability, np.repeat(probability[labels == 0], 9)], np.r_[labels, np.zeros(3600, int)]
    )
    assert again == pytest.approx(threshold, abs=0.01)


def test_the_balanced_point_of_separate_classes_lies_between_them() -> None:
    assert 0.3 < balanced_point(np.array([0.1, 0.3, 0.8, 0.9]), np.array([0, 0, 1, 1])) < 0.8
