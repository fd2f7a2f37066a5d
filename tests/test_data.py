"""The radiographs that come with the tests: small, attributed, of twenty patients, none of the official test split."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from PIL import Image

from finetune.data.folders import scan
from tests.helpers.data import ROOT, TWENTY


def test_ten_of_either_class_come_from_twenty_patients(twenty_radiographs: Path) -> None:
    found = scan(twenty_radiographs).radiographs
    assert sorted(radiograph.label for radiograph in found) == [0] * 10 + [1] * 10
    assert len({radiograph.patient for radiograph in found}) == 20
    assert all(radiograph.patient_known for radiograph in found)
    assert len({sha256(radiograph.path.read_bytes()).hexdigest() for radiograph in found}) == 20


def test_nothing_comes_from_the_official_test_split() -> None:
    assert [folder.name for folder in TWENTY.iterdir()] == ["train"]


def test_they_are_small_and_carry_no_metadata() -> None:
    files = [path for path in TWENTY.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".jpeg", ".md"}
    assert sum(path.stat().st_size for path in files) < 200_000
    for path in TWENTY.rglob("*.jpeg"):
        with Image.open(path) as image:
            assert image.size == (224, 224)
            assert not image.getexif()
            assert "comment" not in image.info


def test_source_and_licence_are_named_beside_them() -> None:
    readme = (TWENTY.parent / "README.md").read_text()
    assert "10.17632/rscbjbr9sj.2" in readme
    assert "CC BY 4.0" in readme
    assert "Kermany" in readme


def test_every_recorded_answer_for_them_is_about_a_file_that_is_there() -> None:
    lines = (ROOT / "tests" / "serving" / "reference_answers.jsonl").read_text().splitlines()
    recorded = {json.loads(line)["file"] for line in lines}
    shipped = {str(path.relative_to(TWENTY.parent)) for path in TWENTY.rglob("*.jpeg")}
    assert {file for file in recorded if file.startswith("chest_xray/")} <= shipped
    assert len(recorded & shipped) >= 16
