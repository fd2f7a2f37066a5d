"""Atomic writes: a reader finds the old content or the new, never half of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from xray_client import OutputRefused
from xray_client.files import check_output, new_folder, replacing, sha256, write_atomically


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


def is_ours(head: bytes) -> bool:
    return head.startswith(b"ours")


def test_a_new_an_empty_and_an_earlier_file_may_be_written(tmp_path: Path) -> None:
    check_output(tmp_path / "new.txt", ours=is_ours)
    check_output(tmp_path / "no folder" / "new.txt", ours=is_ours)
    (tmp_path / "empty.txt").touch()
    check_output(tmp_path / "empty.txt", ours=is_ours)
    (tmp_path / "ours.txt").write_text("ours: 1")
    check_output(tmp_path / "ours.txt", inputs=[tmp_path / "missing.png"], ours=is_ours)


def make(path: Path, kind: str) -> list[Path]:
    """Make a target that must not be written; return the inputs."""
    source = path.with_name("input.png")
    source.write_text("ours, but an input")
    if kind == "an input":
        path.hardlink_to(source)
    elif kind == "an input itself":
        return [path] if path.write_text("ours") else []
    elif kind == "a link":
        path.symlink_to(source)
    elif kind == "a link to nothing":
        path.symlink_to("nothing")
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "another file":
        path.write_text("theirs")
    return [source]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("an input", "is an input"),
        ("an input itself", "is an input"),
        ("a link", "is a link"),
        ("a link to nothing", "is a link"),
        ("a folder", "is a folder"),
        ("a pipe", "is a pipe"),
        ("another file", "not an earlier one"),
    ],
)
def test_what_belongs_to_others_is_not_written(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "target"
    inputs = make(path, kind)
    with pytest.raises(OutputRefused, match=words) as refused:
        check_output(path, inputs=inputs, ours=is_ours)
    assert refused.value.source == str(path)
    assert refused.value.remedy


def test_a_device_is_not_written() -> None:
    with pytest.raises(OutputRefused, match="a device"):
        check_output("/dev/null", ours=is_ours)
