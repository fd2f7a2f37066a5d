"""`xray-client health` and `info`: is the server ready, and what does it serve."""

from __future__ import annotations

import json

from tests.client.cli.test_classify import run
from tests.client.test_models import CARD
from xray_client.testing import FakeServer


def test_health_is_ready_or_says_why_not(fake: FakeServer) -> None:
    done = run(fake, "health")
    assert (done.exit_code, done.stdout) == (0, f"ready: medclip at {fake.url}\n")
    fake.ready = False
    done = run(fake, "health")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "not ready" in done.stderr


def test_info_shows_versions_preprocessing_and_tensors(fake: FakeServer) -> None:
    text = run(fake, "info").stdout
    for words in ("versions        1\n", '"geometry": "pad"', "image UINT8 [-1, 1, 224, 224]", "fake 2.51.0"):
        assert words in text


def test_a_model_that_is_not_served_is_named(fake: FakeServer) -> None:
    done = run(fake, "info", "--model", "other")
    assert done.exit_code == 3
    assert "other at" in done.stderr
    assert "'other' is not found" in done.stderr


def test_info_shows_it_to_people_and_to_programs(fake: FakeServer) -> None:
    fake.parameters |= {"card": CARD.to_json(), "engine": "onnxruntime"}
    shown = run(fake, "info").stdout
    for words in (
        "Normal below 0.1000, Pneumonia from 0.6000, Uncertain in between; where a choice is forced, Pneumonia from "
        "0.2000, chosen for a sensitivity of 0.98, fitted on validation\n",
        "calibration     temperature 0.500, bias -1.000, fitted on validation\n",
        "novelty         above 1 for 1.1 % of the radiographs evaluated on\n",
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
