"""Figures and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.evaluation.metrics import Scores, summarise


def _scores(n: int = 300, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3 // 2
    probability = np.clip(0.35 + 0.3 * labels + rng.normal(0, 0.2, n), 0, 1)
    return Scores(probability, labels, np.arange(n).astype(str), 0.5)


def test_the_figures_are_those_of_their_definitions() -> None:
    scores = Scores(np.array([0.1, 0.6, 0.4, 0.9, 0.8]), np.array([0, 0, 1, 1, 1]), np.array(list("abcde")), 0.5)
    figures = summarise(scores)
    assert figures["accuracy"]["value"] == pytest.approx(3 / 5)
    assert figures["sensitivity"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["specificity"]["value"] == pytest.approx(1 / 2)
    assert figures["auroc"]["value"] == pytest.approx(5 / 6, abs=1e-6)
    assert figures["confusion"] == [[1, 1], [1, 2]]


def test_each_interval_holds_its_value_and_repeats_with_the_seed() -> None:
    figures = summarise(_scores())
    for name in ("accuracy", "sensitivity", "specificity", "auroc"):
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
    assert summarise(_scores()) == figures


def test_repeating_a_patients_images_does_not_narrow_the_interval() -> None:
    one = _scores()
    ten = Scores(np.tile(one.probability, 10), np.tile(one.labels, 10), np.tile(one.patients, 10), 0.5)

    def width(scores: Scores) -> float:
        accuracy = summarise(scores)["accuracy"]
        return accuracy["high"] - accuracy["low"]

    assert width(ten) == pytest.approx(width(one), rel=0.02)


def test_no_errors_do_not_mean_no_doubt() -> None:
    labels = np.array([0] * 20 + [1] * 20)
    figures = summarise(Scores(labels * 0.8 + 0.1, labels, np.arange(40).astype(str), 0.5))
    for name in ("accuracy", "sensitivity", "specificity", "auroc"):
        assert figures[name]["value"] == figures[name]["high"] == 1
        assert figures[name]["low"] < 0.95
