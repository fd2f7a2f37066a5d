"""From what stands on the command line to the files that are meant."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from xray_client._imaging.dicom import is_dicom

from .options import say

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
OVERLAY = ".overlay.png"


def expand(paths: tuple[str, ...], *, recursive: bool = False) -> list[str]:
    """Files as named; patterns that no shell has expanded; folders as the images in them; "-" as the lines of stdin."""
    files: list[str] = []
    for path in _with_stdin(paths):
        is_pattern = any(character in path for character in "*?[") and not _asks(Path(path).exists)
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True)) if is_pattern else []  # noqa: PTH207
        for match in matches or [path]:
            files += _images_in(Path(match), recursive) if _asks(Path(match).is_dir) else [match]
    if not files:
        raise click.UsageError(f"no images ({', '.join(SUFFIXES)}) in {', '.join(paths)}")
    return files


def is_image(path: Path) -> bool:
    """Whether a file in a folder is meant, by its name or, as with DICOM, by its first bytes."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in SUFFIXES:
        return not path.name.endswith(OVERLAY)
    # Archives write DICOM under names such as IM0001 or 1.2.840.113: only the content tells. A pipe is not waited for.
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    return _asks(lambda: path.is_file() and _starts_like_dicom(path))


def _with_stdin(paths: tuple[str, ...]) -> Iterator[str]:
    for path in paths:
        if path == "-":
            # As bytes: a file's name may be in no encoding.
            yield from (os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line)
        else:
            yield path


def _asks(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # no permission to look: the reader will say so
        return False


def _images_in(folder: Path, recursive: bool) -> list[str]:
    try:
        names = list(_visible_files(folder, recursive))
    except OSError as err:
        raise click.UsageError(f"{folder}: {err.strerror or err}") from err
    images = [path for path in names if is_image(path)]
    if len(images) < len(names):
        say(f"xray-client: {folder}: {len(names) - len(images)} other files left out")
    return [str(path) for path in images]


def _visible_files(folder: Path, recursive: bool) -> Iterator[Path]:
    folders = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif not path.is_symlink():  # a link may lead back up
            folders.append(path)
    for inner in folders if recursive else ():
        try:
            yield from _visible_files(inner, recursive)
        except OSError as err:
            say(f"xray-client: {inner}: {err.strerror or err}")


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))
