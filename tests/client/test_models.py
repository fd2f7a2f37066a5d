"""Answers, failures and model cards: how they print, and their rows of a table or JSON."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tests.helpers.radiographs import grey
from xray_client import (
    Estimate,
    Failure,
    ImageUnreadable,
    ModelCard,
    Prediction,
    Preprocessing,
    ServerUnreachable,
    Timing,
    XrayClient,
)
from xray_client.testing import FakeServer

KEYS = ["file", "finding", "probability", "decision", "novelty", "model", "version", "milliseconds", "error"]


def prediction(**changes: object) -> Prediction:
    values: dict[str, object] = {
        "file": "chest.png",
        "finding": "Pneumonia",
        "probability": 0.9731,
        "decision": 1,
        "novelty": 0.41,
        "heatmap": np.zeros((7, 7), np.float32),
        "model": "medclip",
        "model_version": "3",
        "milliseconds": 8.43219,
        "timing": Timing(prepare_ms=6.0, server_ms=2.1),
        "preprocessing": Preprocessing(),
    }
    return Prediction(**(values | changes))  # type: ignore[arg-type]


def test_a_prediction_prints_as_one_line() -> None:
    assert str(prediction()) == (
        "chest.png: Pneumonia, probability of Pneumonia 0.973, novelty 0.41 (medclip version 3, 8.4 ms)"
    )
    assert "heatmap" not in repr(prediction())


def test_an_image_unlike_the_training_radiographs_is_called_so() -> None:
    assert not prediction(novelty=1.0).novel
    assert prediction(novelty=1.01).novel
    assert "novelty 1.01, unlike the training radiographs" in str(prediction(novelty=1.01))


def test_a_row_has_exactly_the_agreed_keys_and_goes_into_json() -> None:
    row = prediction().to_dict()
    assert list(row) == KEYS
    assert json.loads(json.dumps(row)) == {
        "file": "chest.png",
        "finding": "Pneumonia",
        "probability": 0.9731,
        "decision": 1,
        "novelty": 0.41,
        "model": "medclip",
        "version": "3",
        "milliseconds": 8.432,
        "error": None,
    }


def test_a_failure_has_the_same_keys_and_says_why() -> None:
    error = ImageUnreadable("the file is empty", remedy="export it again", source="chest.png")
    failure = Failure("chest.png", error, "medclip", 1.23456)
    row = failure.to_dict()
    assert list(row) == KEYS
    assert row["error"] == "ImageUnreadable: the file is empty (export it again)"
    assert (row["model"], row["milliseconds"]) == ("medclip", 1.235)
    assert [key for key in KEYS if row[key] is None] == ["finding", "probability", "decision", "novelty", "version"]
    assert str(failure) == "chest.png: the file is empty (export it again)"


def test_a_failure_of_the_server_names_the_server() -> None:
    failure = Failure("chest.png", ServerUnreachable("gone", source="medclip at a:1"), "medclip", 1.0)
    assert str(failure) == "chest.png: medclip at a:1: gone"
    assert str(Failure(None, failure.error, "medclip", 1.0)) == "image: medclip at a:1: gone"


def test_an_answer_cannot_be_changed_and_compares_without_its_heatmap() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction().finding = "Normal"  # type: ignore[misc]
    assert prediction() == prediction(heatmap=np.ones((7, 7), np.float32))
    assert prediction() != prediction(probability=0.5)
    assert len({prediction(), prediction(heatmap=None)}) == 1


def test_a_prediction_paints_its_heatmap_over_the_radiograph_at_its_own_size() -> None:
    radiograph = grey(90, (300, 200))
    hot = np.full((7, 7), 0.1, np.float32)
    picture = prediction(heatmap=hot).overlay(radiograph)
    assert (picture.mode, picture.size) == ("RGB", (200, 300))
    red, _, blue = picture.getpixel((100, 150))  # type: ignore[misc]
    assert red != blue
    with pytest.raises(ValueError, match="heatmap=True"):
        prediction(heatmap=None).overlay(radiograph)


def test_results_are_slotted_and_go_into_json_by_themselves() -> None:
    assert not hasattr(prediction(), "__dict__")
    failure = Failure("chest.png", ImageUnreadable("the file is empty"), "medclip", 1.0)
    for result in (prediction(), failure):
        assert json.loads(result.to_json()) == json.loads(json.dumps(result.to_dict()))
        with pytest.raises((AttributeError, TypeError)):
            result.colour = "red"  # type: ignore[union-attr]


CARD = ModelCard(
    operating_point=0.2,
    sensitivity_asked=0.98,
    uncertain_band=(0.1, 0.6),
    temperature=0.5,
    bias=-1.0,
    fitted_on="validation",
    novelty_flagged=0.011,
    trained_on="chest_xray: 3 Normal, 4 Pneumonia",
    evaluated_on="chest_xray, test",
    figures={"auroc": Estimate(0.9, 0.85, 0.95)},
    notice="Research use only.",
)


def test_a_card_goes_into_json_and_back() -> None:
    assert ModelCard.from_json(CARD.to_json()) == CARD
    assert ModelCard.from_json(ModelCard().to_json()) == ModelCard()
    assert "sensitivity_asked" not in ModelCard(operating_point=0.5).to_json()


def test_what_a_later_release_adds_is_passed_over() -> None:
    assert ModelCard.from_json(json.dumps({"operating_point": 0.5, "colour": "red"})) == ModelCard(operating_point=0.5)


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "7", "null", '{"operating_point": "high"}', '{"uncertain_band": [1]}', '{"figures": 3}',
     '{"bias": 1' + 400 * "0" + "}",
     '{"figures": {"auroc": {"value": 1}}}'],
)  # fmt: skip
def test_what_is_no_card_is_none_and_shown_as_it_is(fake: FakeServer, text: str) -> None:
    assert ModelCard.from_json(text) is None
    fake.parameters["card"] = text
    with XrayClient(fake.url) as client:
        told = client.info()
    assert told.card is None
    assert told.parameters == (("card", text),)
