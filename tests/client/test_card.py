"""The model card that a server shows: believed as far as it can be read, and shown to people."""

from __future__ import annotations

import json

import pytest

from tests.client.cli.test_classify import run
from xray_client import Estimate, ModelCard, XrayClient
from xray_client.testing import FakeServer

CARD = ModelCard(
    operating_point=0.2,
    sensitivity_asked=0.98,
    uncertain_band=(0.1, 0.6),
    temperature=0.5,
    bias=-1.0,
    fitted_on="validation",
    novelty_flagged=0.011,
    trained_on="chest_xray: 3 Normal, 4 Pneumonia",
    judged_on="chest_xray, test",
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


def test_info_shows_it_to_people_and_to_programs(fake: FakeServer) -> None:
    fake.parameters |= {"card": CARD.to_json(), "engine": "onnxruntime"}
    shown = run(fake, "info").stdout
    for words in (
        "Normal below 0.1000, Pneumonia from 0.6000, Uncertain in between; where a choice is forced, Pneumonia from "
        "0.2000, chosen for a sensitivity of 0.98, fitted on validation\n",
        "calibration     temperature 0.500, bias -1.000, fitted on validation\n",
        "novelty         above 1 for 1.1 % of the radiographs judged on\n",
        "auroc           0.900 (0.850 to 0.950)\n",
        "notice          Research use only.\n",
        "engine          onnxruntime\n",
    ):
        assert words in shown
    told = json.loads(run(fake, "info", "--format", "json").stdout)
    assert told["card"]["operating_point"] == 0.2
    assert told["card"]["figures"]["auroc"] == {"value": 0.9, "low": 0.85, "high": 0.95}
    assert told["parameters"] == {"engine": "onnxruntime"}
    assert told["preprocessing"]["geometry"] == "pad"


def test_a_card_cannot_write_to_the_terminal(fake: FakeServer) -> None:
    fake.parameters["card"] = json.dumps({"trained_on": "\x1b[2Jred", "figures": {"\x1b[1m": {
        "value": 1, "low": 1, "high": 1}}})  # fmt: skip
    assert "\x1b" not in run(fake, "info").stdout
