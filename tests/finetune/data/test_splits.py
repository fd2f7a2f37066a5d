"""Predefined splits: from the data itself, or from the file of an earlier run."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.folders import scan
from finetune.data.records import Radiograph, split_by_patient
from finetune.data.splits import load_splits, save_splits, split_as_given
from finetune.errors import DataError


def _radiograph(name: str, label: int, patient: str, folder: str = "train") -> Radiograph:
    return Radiograph(Path("data") / name, label, patient, folder)


@pytest.fixture
def radiographs() -> list[Radiograph]:
    """20 patients of each class, two radiographs each."""
    return [
        _radiograph(f"{label}-{i}-{j}.png", label, f"P{label}-{i}")
        for label in (0, 1)
        for i in range(20)
        for j in (0, 1)
    ]


@pytest.fixture
def saved(radiographs: list[Radiograph], tmp_path: Path) -> Path:
    splits = split_by_patient(radiographs, val_fraction=0.2, seed=3)
    save_splits(tmp_path / "splits.csv", radiographs, splits, Path("data"))
    return tmp_path / "splits.csv"


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_saved_split_is_the_same_when_loaded_whatever_the_order_of_the_files(
    radiographs: list[Radiograph], saved: Path
) -> None:
    drawn = split_by_patient(radiographs, val_fraction=0.2, seed=3)
    shuffled = radiographs[::-1]
    loaded = load_splits(saved, shuffled, Path("data"))
    for name in ("train", "val", "test"):
        before = {radiographs[i].path for i in getattr(drawn, name)}
        assert {shuffled[i].path for i in getattr(loaded, name)} == before


def test_real_radiographs_keep_their_split(twenty_radiographs: Path, tmp_path: Path) -> None:
    root = twenty_radiographs
    radiographs = scan(root).radiographs
    drawn = split_by_patient(radiographs, val_fraction=0.15, seed=0)
    save_splits(tmp_path / "splits.csv", radiographs, drawn, root)
    loaded = load_splits(tmp_path / "splits.csv", radiographs, root)
    for name in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(loaded, name), np.sort(getattr(drawn, name)))


def test_what_was_taken_out_of_training_stays_out(radiographs: list[Radiograph], tmp_path: Path) -> None:
    radiographs = [*radiographs, _radiograph("t.png", 1, "P1-4", "test")]
    drawn = split_by_patient(radiographs, val_fraction=0.2, seed=0)
    save_splits(tmp_path / "splits.csv", radiographs, drawn, Path("data"))
    loaded = load_splits(tmp_path / "splits.csv", radiographs, Path("data"))
    assert loaded.leaked_patients == drawn.leaked_patients == ("P1-4",)
    assert {radiographs[i].patient for i in (*loaded.train, *loaded.val)}.isdisjoint({"P1-4"})


def test_the_file_has_a_line_for_each_radiograph_and_the_probability_where_it_was_scored(
    radiographs: list[Radiograph], tmp_path: Path
) -> None:
    splits = split_by_patient(radiographs, val_fraction=0.2, seed=0)
    scores = np.linspace(0, 1, len(splits.val))
    save_splits(tmp_path / "splits.csv", radiographs, splits, Path("data"), probability={"val": scores})
    with (tmp_path / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(radiographs)
    assert [float(row["probability"]) for row in rows if row["split"] == "val"] == scores.tolist()
    assert {row["probability"] for row in rows if row["split"] == "train"} == {""}
    assert set(rows[0]) == {"file", "label", "patient", "split", "probability"}


def test_new_radiographs_are_counted_named_and_answered_with_a_remedy(
    radiographs: list[Radiograph], saved: Path
) -> None:
    new = [_radiograph(f"new{i}.png", 0, f"N{i}") for i in range(4)]
    with pytest.raises(DataError, match=r"4 of 84 radiographs are not in it: new0\.png, new1.*\.\.\. .*--splits"):
        load_splits(saved, [*radiographs, *new], Path("data"))


def test_missing_radiographs_are_counted_and_named(radiographs: list[Radiograph], saved: Path) -> None:
    with pytest.raises(DataError, match=r"1 of its 80 radiographs are missing or unreadable: 0-0-0\.png"):
        load_splits(saved, radiographs[1:], Path("data"))


def test_a_patient_in_two_splits_is_refused_by_name(radiographs: list[Radiograph], saved: Path) -> None:
    part = next(line.split(",")[3] for line in saved.read_text().splitlines() if line.startswith("0-7-1.png"))
    other = "test" if part == "train" else "train"
    _edit(saved, f"0-7-1.png,Normal,P0-7,{part}", f"0-7-1.png,Normal,P0-7,{other}")
    with pytest.raises(DataError, match="1 patients are in two splits: P0-7"):
        load_splits(saved, radiographs, Path("data"))


def test_two_patients_that_turned_out_to_be_one_are_refused_in_two_splits(
    radiographs: list[Radiograph], saved: Path
) -> None:
    splits = load_splits(saved, radiographs, Path("data"))
    one, other = radiographs[splits.train[0]].patient, radiographs[splits.val[0]].patient
    merged = [
        replace(radiograph, patient=one if radiograph.patient == other else radiograph.patient)
        for radiograph in radiographs
    ]
    with pytest.raises(DataError, match=f"two splits: {one} \\({one} in train and val\\)"):
        load_splits(saved, merged, Path("data"))


def test_a_file_of_splits_that_cannot_be_understood_is_refused_with_its_line(
    radiographs: list[Radiograph], saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_splits(tmp_path / "absent.csv", radiographs, Path("data"))
    lines = saved.read_text().splitlines()
    saved.write_text("\n".join([lines[0], lines[1].replace(",train", ",training"), *lines[2:]]))
    with pytest.raises(DataError, match=r"splits\.csv, line 2: unknown split 'training'"):
        load_splits(saved, radiographs, Path("data"))
    saved.write_text("\n".join(["name,split", *lines[1:]]))
    with pytest.raises(DataError, match="no column 'file'"):
        load_splits(saved, radiographs, Path("data"))


def test_splits_that_leave_a_split_without_a_class_are_refused(radiographs: list[Radiograph], saved: Path) -> None:
    lines = saved.read_text().splitlines()
    saved.write_text("\n".join(line.replace(",val", ",train") if "Normal" in line else line for line in lines))
    with pytest.raises(DataError, match="no Normal radiographs in val"):
        load_splits(saved, radiographs, Path("data"))


def test_given_splits_are_kept_and_a_patient_on_two_sides_is_taken_out_of_the_side_that_trains() -> None:
    radiographs = [
        *(_radiograph(f"{folder}{label}.png", label, f"{folder}{label}", folder)
          for folder in ("train", "val", "test") for label in (0, 1)),
        _radiograph("a.png", 0, "val0", "train"),
        _radiograph("b.png", 1, "test1", "val"),
        _radiograph("c.png", 1, "test1", "train"),
    ]  # fmt: skip
    splits = split_as_given(radiographs)
    assert [part.tolist() for part in (splits.train, splits.val, splits.test)] == [[0, 1], [2, 3], [4, 5]]
    assert splits.leaked_patients == ("test1", "val0")


def test_a_file_of_an_earlier_release_calls_val_validation(radiographs: list[Radiograph], saved: Path) -> None:
    expected = load_splits(saved, radiographs, Path("data"))
    _edit(saved, ",val", ",validation")
    np.testing.assert_array_equal(load_splits(saved, radiographs, Path("data")).val, expected.val)
