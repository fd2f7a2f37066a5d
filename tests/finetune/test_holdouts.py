"""A held-out style is held out: nothing of it, and nobody who shows it, is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from finetune.data.records import Record, scan
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.holdouts import SHIFTS, hold_out, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 patients of each style; pneumonias are wider, and a few persons have pneumonias of both causes."""
    root = tmp_path_factory.mktemp("styles")
    random = np.random.default_rng(0)
    names = [f"NORMAL/{series}-{100 + i:04d}-0001.png" for series in ("IM", "NORMAL2-IM") for i in range(20)]
    names += [f"PNEUMONIA/person{i}_bacteria_{i}.png" for i in range(20)]
    names += [f"PNEUMONIA/person{i}_virus_{i}.png" for i in range(16, 36)]
    for name in names:
        path = root / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        width = int(random.integers(40, 60)) + 20 * ("PNEUMONIA" in name)
        Image.fromarray(random.integers(0, 255, (48, width), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return list(scan(folder))


def _patients(records: Sequence[Record], indices: np.ndarray) -> set[str]:
    return {records[i].patient for i in indices}


@pytest.mark.parametrize("name", list(SHIFTS))
def test_the_style_and_its_patients_are_kept_from_training(records: list[Record], name: str) -> None:
    style = SHIFTS[name](records)
    splits = hold_out(records, style, part="test", val_fraction=0.2, seed=0)
    assert style.any()
    assert not style.all()
    assert set(np.flatnonzero(style)) <= set(splits.test)
    seen = _patients(records, splits.train), _patients(records, splits.val), _patients(records, splits.test)
    assert sum(map(len, seen)) == len(set.union(*seen))
    for part in (splits.train, splits.val, splits.test):
        assert {records[i].label for i in part} == {0, 1}


def test_the_style_can_judge_a_search(records: list[Record]) -> None:
    splits = hold_out(records, SHIFTS["series"](records), part="validation", val_fraction=0.2, seed=0)
    assert len(splits.test) == 0
    normals = [records[i].path.name for i in splits.val if records[i].label == 0]
    assert len(normals) == 20
    assert all(name.startswith("NORMAL2") for name in normals)


def test_against_shape_takes_the_narrow_pneumonias(records: list[Record]) -> None:
    held = SHIFTS["against-shape"](records)
    widths = np.array([Image.open(record.path).width for record in records])
    labels = np.array([record.label for record in records])
    assert widths[held & (labels == 1)].max() < widths[~held & (labels == 1)].max()
    assert widths[held & (labels == 0)].min() > widths[~held & (labels == 0)].min()


def test_a_style_that_nobody_has_is_an_error(records: list[Record]) -> None:
    with pytest.raises(DataError, match="no radiograph has this style"):
        hold_out(records, np.zeros(len(records), bool), part="test", val_fraction=0.2, seed=0)


def test_the_command_writes_splits_that_training_takes(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--data", str(folder), "--out", str(tmp_path / "shifts")])
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / "shifts").glob("*.csv")} == set(SHIFTS)
    records = scan(folder)
    splits = load_splits(tmp_path / "shifts" / "series.csv", records, folder)
    assert len(splits.test) >= 20
