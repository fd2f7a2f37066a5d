"""The cache of decoded radiographs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data import cache as module
from finetune.data.cache import already_square, build_cache
from finetune.data.folders import scan
from finetune.errors import DataError
from tests.helpers.radiographs import grey
from xray_client import ImageUnsupported, Preprocessing, load_radiograph


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in ("NORMAL", "PNEUMONIA"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (60 + i, 80), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{i}.png")
    return tmp_path / "data"


def _build(folder: Path, cache: Path) -> module.Cache:
    return build_cache(scan(folder).radiographs, Preprocessing(), folder, cache)


def _count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []

    def counted(*args: object) -> np.ndarray:
        decoded.append(1)
        return load_radiograph(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "load_radiograph", counted)
    return decoded


def test_the_cache_holds_what_the_client_would_send(folder: Path, tmp_path: Path) -> None:
    cache = _build(folder, tmp_path / "cache")
    for radiograph, row in zip(cache.radiographs, cache.rows, strict=True):
        np.testing.assert_array_equal(cache.images[row], load_radiograph(radiograph.path, Preprocessing())[0])


def test_a_second_call_decodes_nothing_and_a_changed_file_only_itself(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _build(folder, tmp_path / "cache")
    decoded = _count_decoding(monkeypatch)
    _build(folder, tmp_path / "cache")
    assert len(decoded) == 0
    Image.fromarray(grey(200, (250, 250))).save(folder / "NORMAL" / "3.png")
    (folder / "NORMAL" / "4.png").rename(folder / "NORMAL" / "renamed.png")
    cache = _build(folder, tmp_path / "cache")
    assert len(decoded) == 1
    changed = next(i for i, radiograph in enumerate(cache.radiographs) if radiograph.path.name == "3.png")
    assert cache.images[cache.rows[changed]].max() == 202


def test_a_disk_without_room_is_told_before_anything_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory map of a file with holes would kill the process when the disk is full."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    decoded = _count_decoding(monkeypatch)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"No space left on device: the cache needs 1 MiB, and \d+ are free"):
        _build(folder, tmp_path / "cache")
    assert not decoded
    assert not list((tmp_path / "cache").iterdir())


def test_the_room_of_a_cache_is_taken_at_once(folder: Path, tmp_path: Path) -> None:
    _build(folder, tmp_path / "cache")
    (images,) = (tmp_path / "cache").rglob("images.npy")
    assert images.stat().st_blocks * 512 >= images.stat().st_size


def test_an_unreadable_file_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    (folder / "NORMAL" / "3.png").write_bytes(b"not an image")
    cache = _build(folder, tmp_path / "cache")
    assert len(cache.radiographs) == 23
    assert [name for name, _ in cache.unreadable] == ["NORMAL/3.png"]


def test_a_file_that_was_refused_is_read_again_when_the_reader_has_learnt_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: bytes, preprocessing: Preprocessing) -> np.ndarray:
        """An older reader that does not know one of the files."""
        if source == (folder / "NORMAL" / "3.png").read_bytes():
            raise ImageUnsupported("not known yet")
        return load_radiograph(source, preprocessing)

    monkeypatch.setattr(module, "load_radiograph", refuse)
    assert _build(folder, tmp_path / "cache").unreadable == [("NORMAL/3.png", "not known yet")]
    monkeypatch.setattr(module, "load_radiograph", load_radiograph)
    assert _build(folder, tmp_path / "cache").unreadable == []


def test_a_file_that_has_gone_since_it_was_listed_is_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    radiographs = scan(folder).radiographs
    (folder / "NORMAL" / "3.png").unlink()
    cache = build_cache(radiographs, Preprocessing(), folder, tmp_path / "cache")
    assert len(cache.radiographs) == 23
    assert cache.unreadable == [("NORMAL/3.png", "No such file or directory")]


def test_more_than_one_in_twenty_unreadable_stops_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    for i in range(2):
        (folder / "NORMAL" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 24 images are unreadable: NORMAL/0\.png"):
        _build(folder, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_identical_files_share_a_row(folder: Path, tmp_path: Path) -> None:
    (folder / "NORMAL" / "copy.png").write_bytes((folder / "NORMAL" / "0.png").read_bytes())
    cache = _build(folder, tmp_path / "cache")
    rows = {
        radiograph.path.name: row
        for radiograph, row in zip(cache.radiographs, cache.rows, strict=True)
        if radiograph.label == 0
    }
    assert rows["copy.png"] == rows["0.png"]


def test_a_damaged_cache_is_made_again(folder: Path, tmp_path: Path) -> None:
    _build(folder, tmp_path / "cache")
    next((tmp_path / "cache").glob("*/index.json")).write_text("{")
    assert len(_build(folder, tmp_path / "cache").radiographs) == 24


def test_only_images_that_are_all_squares_of_the_models_size_count_as_stretched(
    folder: Path, twenty_radiographs: Path
) -> None:
    assert not already_square(scan(folder).radiographs, 224)
    assert already_square(scan(twenty_radiographs).radiographs, 224)
