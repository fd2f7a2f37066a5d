"""Expansion of the paths on the command line to image files."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from xray_client.image_files import IMAGE_SUFFIXES, is_image_file

from .options import note


def expand(paths: tuple[str, ...], *, recursive: bool = False) -> list[str]:
    """Expand files, patterns that no shell has expanded, folders, and "-" for a list on stdin.

    Args:
        paths: Arguments of the command line.
        recursive: Descend into the folders in folders.

    Returns:
        Files in the order of the arguments; a file that does not exist is kept, so that it gets an answer.

    Raises:
        click.UsageError: No image file is left, or a folder cannot be listed.
    """
    files: list[str] = []
    for path in _with_stdin(paths):
        is_pattern = any(character in path for character in "*?[") and not _permitted(Path(path).exists)
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True)) if is_pattern else []  # noqa: PTH207
        for match in matches or [path]:
            files += _images_in(Path(match), recursive) if _permitted(Path(match).is_dir) else [match]
    if not files:
        raise click.UsageError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(paths)}")
    return files


def _with_stdin(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            # Bytes, because the name of a file may be in no encoding; lines, or ended by zeros as by `find -print0`.
            listed = sys.stdin.buffer.read()
            names = listed.split(b"\0") if b"\0" in listed else listed.replace(b"\r\n", b"\n").split(b"\n")
            yield from (os.fsdecode(name) for name in names if name)
        else:
            yield path


def _permitted(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError:  # no permission to look: the reader reports it
        return False


def _images_in(folder: Path, recursive: bool) -> list[str]:
    try:
        files = list(_visible_files(folder, recursive, set()))
    except OSError as err:
        raise click.UsageError(f"{folder}: {err.strerror or err}") from err
    images = [path for path in files if is_image_file(path)]
    if len(images) < len(files):
        note(f"{folder}: {len(files) - len(images)} other files left out")
    return [str(path) for path in images]


def _visible_files(folder: Path, recursive: bool, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the files of a folder; links to folders are followed, and no folder is read twice."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    folders = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        else:
            folders.append(path)
    for inner in folders if recursive else ():
        try:
            yield from _visible_files(inner, recursive, seen)
        except OSError as err:
            note(f"{inner}: {err.strerror or err}")
