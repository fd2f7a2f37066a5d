"""Copies of one radiograph that carry both labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.cache import Cache, build_cache
from finetune.data.conflicts import without_conflicts
from finetune.data.folders import scan
from finetune.errors import DataError
from xray_client import Preprocessing


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """Three radiographs of each class, of which one of each shows the same pixels in files of other formats."""
    rng = np.random.default_rng(0)
    for label, suffix in (("NORMAL", "png"), ("PNEUMONIA", "bmp")):
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / label / f"{i}.png")
        Image.fromarray(np.arange(1600, dtype=np.uint16).astype(np.uint8).reshape(40, 40)).save(
            tmp_path / label / f"both.{suffix}"
        )
    return build_cache(scan(tmp_path).radiographs, Preprocessing(), tmp_path, tmp_path / "cache")


def test_a_radiograph_with_both_labels_stops_and_its_files_are_named(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"1 radiograph carries both labels: NORMAL/both\.png = PNEUMONIA/both\.bmp"
    ) as e:
        without_conflicts(cache, tmp_path, drop=False)
    assert "--conflicts drop" in str(e.value)


def test_all_its_copies_are_left_out_if_that_is_asked_for(cache: Cache, tmp_path: Path) -> None:
    smaller, left_out = without_conflicts(cache, tmp_path, drop=True)
    assert [entry.file for entry in left_out] == ["NORMAL/both.png", "PNEUMONIA/both.bmp"]
    assert [radiograph.path.name for radiograph in smaller.radiographs] == ["0.png", "1.png"] * 2
    assert len(smaller.rows) == len(smaller.digests) == 4
    assert without_conflicts(smaller, tmp_path, drop=False) == (smaller, [])
