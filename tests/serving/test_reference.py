"""The model that comes with the project, through the whole served path: weights, ONNX, Triton, client.

`reference_answers.jsonl` was written, with that model served, by `xray-client classify --format jsonl FILES`: in
tests/data for the files under `chest_xray`, in the folder of more radiographs for the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.export import export_and_publish
from tests.helpers.data import TWENTY
from xray_build.triton.server import TritonServer
from xray_client import Prediction, XrayClient

RECORDED = [json.loads(line) for line in (Path(__file__).parent / "reference_answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[XrayClient]:
    """A client of the reference model."""
    repository = tmp_path_factory.mktemp("reference")
    export_and_publish(Path("reference"), repository)
    with TritonServer(repository, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        yield client


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: Path(recorded["file"]).name)
def test_recorded_radiographs_get_the_recorded_answers(
    client: XrayClient, recorded: dict, request: pytest.FixtureRequest
) -> None:
    shipped = TWENTY.parent / recorded["file"]
    file = shipped if shipped.exists() else request.getfixturevalue("real_data") / recorded["file"]
    answer = client.classify(file)
    assert isinstance(answer, Prediction)
    assert answer.probability == pytest.approx(recorded["probability"], abs=1e-3)
    assert answer.novelty == pytest.approx(recorded["novelty"], rel=1e-2)


def test_the_recorded_list_has_both_classes_and_something_new() -> None:
    files = [recorded["file"] for recorded in RECORDED]
    assert sum("NORMAL" in file for file in files) >= 8
    assert sum("PNEUMONIA" in file for file in files) >= 8
    assert any(recorded["novelty"] > 1 for recorded in RECORDED if "RG2" in recorded["file"])
