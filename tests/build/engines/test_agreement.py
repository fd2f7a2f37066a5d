"""Comparison of two steps of a build."""

from __future__ import annotations

import numpy as np
import pytest

from xray_build.engines.parity import EXPORT, HALF, REPORTED, Tolerance, compare
from xray_build.errors import BuildError

NAMES = ("a.png", "b.png", "c.png")


def answers() -> dict[str, np.ndarray]:
    pneumonia = np.array([0.1, 0.5, 0.9], np.float32)
    return {
        "probability": np.stack([1 - pneumonia, pneumonia], axis=1),
        "decision": np.array([[0], [1], [1]], np.int32),
        "heatmap": np.zeros((3, 7, 7), np.float32),
        "novelty": np.array([[0.5], [1.0], [40.0]], np.float32),
    }


@pytest.mark.parametrize("output", ["probability", "heatmap", "novelty"])
def test_a_breach_says_which_output_how_far_and_on_which_image(output: str) -> None:
    found = answers()
    found[output][1] += 0.05
    with pytest.raises(BuildError, match=rf"FP16: {output} differs by 5\.00e-02 on image b\.png, more than 2e-0\d"):
        compare(found, answers(), HALF, step="FP16", names=NAMES)


def test_an_answer_that_is_not_a_number_is_a_breach_whatever_the_tolerance() -> None:
    found = answers()
    found["novelty"][2] = np.nan
    with pytest.raises(BuildError, match=r"novelty differs by nan on image c\.png"):
        compare(found, answers(), REPORTED, step="INT8", names=NAMES)


def test_novelty_far_from_the_training_radiographs_is_compared_relatively() -> None:
    found = answers()
    found["novelty"][2] += 0.4
    assert compare(found, answers(), HALF, step="FP16", names=NAMES).novelty == pytest.approx(0.01, rel=1e-3)


def test_half_precision_may_change_no_decision() -> None:
    found = answers()
    found["decision"][1] = 0
    with pytest.raises(BuildError, match=r"1 decisions differ from the step before, first on image b\.png"):
        compare(found, answers(), HALF, step="FP16", names=NAMES, band=(0.5,))


def test_an_export_may_change_a_decision_only_at_a_threshold() -> None:
    found = answers()
    found["decision"][1] = 0
    found["probability"][1] += np.array([5e-5, -5e-5], np.float32)
    assert compare(found, answers(), EXPORT, step="ONNX", band=(0.5,)).decisions_changed == 1
    with pytest.raises(BuildError, match="decisions differ"):
        compare(found, answers(), EXPORT, step="ONNX", band=(0.4,))


def test_a_difference_without_a_limit_is_reported() -> None:
    found = answers()
    found["decision"][0] = 2
    found["probability"][0] = (0.6, 0.4)
    parity = compare(found, answers(), REPORTED, step="INT8", names=NAMES, calibration_set_sha256="abc")
    assert parity.probability == pytest.approx(0.3)
    assert (parity.decisions_changed, parity.images, parity.calibration_set_sha256) == (1, 3, "abc")
    assert "1 decisions changed" in str(parity)


def test_a_misspelt_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="maybe"):
        Tolerance(1, 1, 1, decisions="maybe")
