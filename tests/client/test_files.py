"""Atomic writes: a reader finds the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from xray_client.files import new_folder, replacing, sha256, write_atomically


def write_half(path: Path) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text("ne")
        raise OSError("full")


def fill_half(path: Path) -> None:
    with new_folder(path) as unfinished:
        (unfinished / "a.txt").write_text("a")
        raise KeyboardInterrupt


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders_and_left_alone_where_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    assert write_atomically(path, "one")
    before = path.stat().st_mtime_ns
    assert not write_atomically(path, b"one")
    assert path.stat().st_mtime_ns == before
    assert write_atomically(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_library_may_write_the_file_and_a_reader_sees_the_old_one_until_it_is_done(
    tmp_path: Path, durable: bool
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, durable=durable) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_that_could_not_be_finished_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"):
        write_half(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_appears_with_everything_in_it(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "set"
    with new_folder(path, durable=durable) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "a.txt").write_text("a")
        assert not path.exists()
    assert (path / "inner" / "a.txt").read_text() == "a"
    assert names(path.parent) == ["set"]


def test_a_folder_that_could_not_be_finished_or_whose_name_is_taken_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "set"
    with pytest.raises(KeyboardInterrupt):
        fill_half(path)
    assert names(tmp_path) == []
    path.mkdir()
    (path / "theirs.txt").write_text("theirs")
    with pytest.raises(OSError, match="set"), new_folder(path):
        pass
    assert names(tmp_path) == ["set"]
    assert names(path) == ["theirs.txt"]


def test_a_folder_is_replaced_whole_and_only_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with new_folder(path, replace=True) as unfinished:
        (unfinished / "new.txt").write_text("new")
        assert names(path) == ["old.txt"]
    assert (names(tmp_path), names(path)) == (["set"], ["new.txt"])


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.mkdir()
    (path / "old.txt").write_text("old")
    with pytest.raises(OSError, match="part"), new_folder(path, replace=True, durable=False) as unfinished:
        unfinished.rmdir()
    assert (names(tmp_path), names(path)) == (["set"], ["old.txt"])


def test_a_file_is_hashed_in_pieces(tmp_path: Path) -> None:
    data = bytes(3 * 2**20 + 5)
    (tmp_path / "plan").write_bytes(data)
    assert sha256(tmp_path / "plan") == hashlib.sha256(data).hexdigest()
