"""Evaluation through its command line, on a real small model, and figures that can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from finetune.evaluate import main
from finetune.evaluation.metrics import Scores, calibration_error, summarise_predictions
from finetune.models.checkpoint import load_checkpoint


def evaluated(out: Path, *options: object) -> dict:
    """evaluation.json of a run of the command."""
    result = CliRunner().invoke(main, [str(option) for option in (*options, "--out", out)])
    assert result.exit_code == 0, result.output
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def report(trained: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    evaluated(out, "--checkpoint", trained, "--data", phantoms, "--cache", out / "cache", "--check-images", 12)
    return out


def test_figures_are_those_that_the_run_itself_wrote(report: Path, trained: Path) -> None:
    found = json.loads((report / "evaluation.json").read_text())
    ours = json.loads((trained / "metrics.json").read_text())["metrics"]
    split = "test" if found["data"]["split"] == "test" else "val"
    for name in ("accuracy", "sensitivity", "specificity", "auroc"):
        assert found["stages"]["after"][name]["value"] == pytest.approx(ours[split]["after"][name]["value"], abs=1e-6)
    assert found["stages"]["before"]["auroc"]["value"] == pytest.approx(
        ours[split]["before"]["auroc"]["value"], abs=1e-3
    )


def test_the_page_stands_alone_and_says_what_it_is_not(report: Path) -> None:
    page = (report / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 9
    card = (report / "MODEL_CARD.md").read_text()
    for text in (page, card):
        assert "Not a medical device" in text
    assert "| auroc |" in card


def test_every_change_has_a_level_that_changes_nothing(report: Path) -> None:
    changes = json.loads((report / "evaluation.json").read_text())["robustness"]["changes"]
    neutral = {"brightness": 1, "contrast": 1, "gamma": 1, "blur": 0, "noise": 0, "rotation": 0, "JPEG": 100}
    untouched = {
        tuple(changes[name][what][changes[name]["levels"].index(level)] for what in ("sensitivity", "specificity"))
        for name, level in neutral.items()
    }
    assert len(untouched) == 1


def test_validation_needs_its_split(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", trained / "checkpoint", "--data", phantoms, "--split", "val", "--cache", tmp_path)
    result = CliRunner().invoke(main, [str(option) for option in (*options, "--out", tmp_path)])
    assert result.exit_code != 0
    assert "--splits" in result.output


def test_a_runs_own_split_is_taken_for_its_own_radiographs(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--checkpoint", trained, "--data", phantoms, "--split", "val", "--cache", tmp_path)
    found = evaluated(tmp_path, *options, "--check-images", 0)
    ours = json.loads((trained / "metrics.json").read_text())["metrics"]["val"]
    assert found["stages"]["after"]["images"] == ours["after"]["images"]


def test_a_heatmaps_sum_is_the_image_part_of_the_log_odds(trained: Path, phantoms: Path) -> None:
    model, _ = load_checkpoint(trained / "checkpoint")
    images = torch.from_numpy(np.load(trained / "checkpoint" / "parity_images.npy"))[:4]
    with torch.inference_mode():
        probability, _, heatmap, _ = model(images)
    bias = model.classifier.class_bias
    expected = (
        torch.logit(probability[:, 1].double())
        - (bias[1] - bias[0] + model.bias[1] - model.bias[0]) / model.temperature
    )
    torch.testing.assert_close(heatmap.sum(dim=(1, 2)).double(), expected.double(), atol=1e-3, rtol=1e-3)


def test_calibration_error_by_hand() -> None:
    probability = np.array([0.05, 0.05, 0.95, 0.95])
    labels = np.array([0, 1, 1, 1])
    # two bins of two: |0.05 - 0.5| and |0.95 - 1|, half of the radiographs each
    assert calibration_error(probability, labels, np.ones(4)) == pytest.approx(0.25)


def test_uncertain_covers_both_labels() -> None:
    labels = np.array([0, 1] * 20)
    decision = np.where(np.arange(40) < 10, 2, labels)
    decision[-1] = 0  # the one wrong finding
    scores = Scores(np.where(labels == 1, 0.9, 0.1), labels, np.arange(40), 0.5)
    found = summarise_predictions(scores, decision=decision)
    assert found["coverage"]["value"] == pytest.approx(39 / 40)
    assert found["certain"]["value"] == pytest.approx(30 / 40)
    assert found["findings"] == [16, 14, 10]
    assert found["ppv"]["value"] == 1.0
    assert found["brier"]["value"] == pytest.approx(0.01)


def test_a_server_answers_as_its_checkpoint_does(
    report: Path, triton: str, trained: Path, phantoms: Path, tmp_path: Path
) -> None:
    options = ("--url", triton, "--data", phantoms, "--cache", report / "cache", "--splits", trained / "splits.csv")
    served = evaluated(tmp_path, *options, "--check-images", 0)["stages"]["after"]
    checkpoint = json.loads((report / "evaluation.json").read_text())["stages"]["after"]
    assert served["findings"] == checkpoint["findings"]
    assert served["brier"]["value"] == pytest.approx(checkpoint["brier"]["value"], abs=1e-3)
