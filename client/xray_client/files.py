"""Files written whole or not at all, and on the disk before anybody is told."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> bool:
    """Write a file so that every reader, and every crash, finds the old content or the new, whole.

    Returns:
        Whether there was anything to write; a file that is right already is not touched.
    """
    data = content.encode() if isinstance(content, str) else content
    if path.is_file() and path.read_bytes() == data:
        return False
    replace_by_staged(path, stage_beside(path, data))
    return True


def stage_beside(path: Path, data: bytes) -> Path:
    """Write what is to replace a file later into a hidden file beside it: what can fail for want of space fails now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.new")
    try:
        staged.write_bytes(data)
        sync(staged)
    except OSError:
        with suppress(OSError):
            staged.unlink()
        raise
    return staged


def replace_by_staged(path: Path, staged: Path) -> None:
    """Put a staged file in place."""
    staged.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file, read in pieces: a plan may be large."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
