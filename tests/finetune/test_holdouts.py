"""A held-out subgroup and its patients are kept from training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from finetune.data.folders import scan
from finetune.data.records import Radiograph
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.holdouts import SUBGROUPS, hold_out, main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 patients of each subgroup; pneumonias are wider, and a few persons have pneumonias of both causes."""
    root = tmp_path_factory.mktemp("subgroups")
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
def radiographs(folder: Path) -> list[Radiograph]:
    return list(scan(folder).radiographs)


def _patients(radiographs: Sequence[Radiograph], indices: np.ndarray) -> set[str]:
    return {radiographs[i].patient for i in indices}


@pytest.mark.parametrize("name", list(SUBGROUPS))
def test_the_subgroup_and_its_patients_are_kept_from_training(radiographs: list[Radiograph], name: str) -> None:
    subgroup = SUBGROUPS[name](radiographs)
    splits = hold_out(radiographs, subgroup, split="test", val_fraction=0.2, seed=0)
    assert subgroup.any()
    assert not subgroup.all()
    assert set(np.flatnonzero(subgroup)) <= set(splits.test)
    seen = _patients(radiographs, splits.train), _patients(radiographs, splits.val), _patients(radiographs, splits.test)
    assert sum(map(len, seen)) == len(set.union(*seen))
    for part in (splits.train, splits.val, splits.test):
        assert {radiographs[i].label for i in part} == {0, 1}


def test_a_subgroup_can_become_the_validation_split(radiographs: list[Radiograph]) -> None:
    splits = hold_out(radiographs, SUBGROUPS["series"](radiographs), split="val", val_fraction=0.2, seed=0)
    assert len(splits.test) == 0
    normals = [radiographs[i].path.name for i in splits.val if radiographs[i].label == 0]
    assert len(normals) == 20
    assert all(name.startswith("NORMAL2") for name in normals)


def test_against_shape_takes_the_narrow_pneumonias(radiographs: list[Radiograph]) -> None:
    held = SUBGROUPS["against-shape"](radiographs)
    widths = np.array([Image.open(radiograph.path).width for radiograph in radiographs])
    labels = np.array([radiograph.label for radiograph in radiographs])
    assert widths[held & (labels == 1)].max() < widths[~held & (labels == 1)].max()
    assert widths[held & (labels == 0)].min() > widths[~held & (labels == 0)].min()


def test_an_empty_subgroup_is_an_error(radiographs: list[Radiograph]) -> None:
    with pytest.raises(DataError, match="no radiograph is in this subgroup"):
        hold_out(radiographs, np.zeros(len(radiographs), bool), split="test", val_fraction=0.2, seed=0)


def test_the_command_writes_splits_that_training_takes(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--data", str(folder), "--out", str(tmp_path / "holdouts")])
    assert done.exit_code == 0, done.output
    assert {path.stem for path in (tmp_path / "holdouts").glob("*.csv")} == set(SUBGROUPS)
    radiographs = scan(folder).radiographs
    splits = load_splits(tmp_path / "holdouts" / "series.csv", radiographs, folder)
    assert len(splits.test) >= 20
