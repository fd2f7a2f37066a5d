"""The short model card: what a checkpoint knows of itself, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from xray_build.repository.card import card_of
from xray_client import RESEARCH_USE, ModelCard

AFTER = {"auroc": {"value": 0.91234567, "low": 0.9, "high": 0.92}, "images": 10, "patients": 9, "threshold": 0.5}
TRAINED = {"folder": "chest_xray", "train": {"Normal": 3, "Pneumonia": 4}}


def test_the_reference_models_card_has_its_operating_point_figures_data_and_what_it_is_not_for() -> None:
    folder = Path(__file__).resolve().parents[3] / "finetune" / "reference"
    about = json.loads((folder / "config.json").read_text())["about"]
    card = card_of(about)
    assert card is not None
    assert card.operating_point == pytest.approx(about["decision"]["operating_point"], abs=1e-4)
    after = about["evaluation"]["stages"]["after"]
    assert card.figures["auroc"].low == pytest.approx(after["auroc"]["low"], abs=1e-4)
    assert f"{after['images']} radiographs of {after['patients']} patients" in card.evaluated_on
    assert {"sensitivity", "specificity", "accuracy", "ece", "certain"} <= card.figures.keys()
    assert "Normal" in card.trained_on
    assert "Diagnosis" in card.not_for
    assert card.notice == RESEARCH_USE
    assert ModelCard.from_json(card.to_json()) == card
    assert len(card.to_json()) < 2_000


@pytest.mark.parametrize(
    ("metrics", "evaluated_on"),
    [
        ({"test": {"after": AFTER}, "val": {"after": {}}}, "chest_xray, test: 10 radiographs of 9 patients"),
        ({"val": {"after": AFTER}}, "chest_xray, validation: 10 radiographs of 9 patients"),
        ({"validation": {"after": AFTER}}, "chest_xray, validation: 10 radiographs of 9 patients"),
    ],
    ids=["test", "val", "as earlier releases wrote it"],
)
def test_a_run_is_evaluated_on_test_where_there_was_one(metrics: dict[str, Any], evaluated_on: str) -> None:
    card = card_of({"trained_on": TRAINED, "metrics": metrics})
    assert card is not None
    assert (card.evaluated_on, card.trained_on) == (evaluated_on, "chest_xray: 3 Normal, 4 Pneumonia")
    assert card.figures["auroc"].value == 0.9123
    assert card.operating_point is None


@pytest.mark.parametrize("about", [{}, {"note": "test"}, {"decision": None, "metrics": "none"}, {"evaluation": []},
    {"decision": {"operating_point": "high"}}, {"trust": {"uncertain_band": [0.1]}}])  # fmt: skip
def test_where_nothing_is_known_or_understood_there_is_no_card(about: dict[str, Any]) -> None:
    assert card_of(about) is None
