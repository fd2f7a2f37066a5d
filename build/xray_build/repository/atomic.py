"""Files of a model repository: written whole or not at all, on the disk before anybody is told, by one at a time."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from xray_build.errors import BuildError

LOCK_FILE = ".lock"
_POLL_S = 0.05
_REMEDIES = {
    errno.ENOSPC: "make room on the disk; what is live has not changed",
    errno.EDQUOT: "make room within the quota; what is live has not changed",
    errno.EFBIG: "allow larger files; what is live has not changed",
    errno.EROFS: "mount it for writing here; what is live has not changed",
    errno.EACCES: "run as its owner; what is live has not changed",
    errno.EPERM: "run as its owner; what is live has not changed",
}


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn what the operating system says into a `BuildError` that names the file and the remedy."""
    try:
        yield
    except OSError as err:
        raise BuildError(
            f"cannot be written: {err.strerror or err}",
            source=str(err.filename or where),
            remedy=_REMEDIES.get(err.errno or 0, ""),
        ) from err


@contextmanager
def locked(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the folder's lock: against other threads and other processes, and let go when this process dies.

    Raises:
        BuildError: Somebody else has held it for `wait_s` seconds, or the folder cannot be written.
    """
    deadline = time.monotonic() + wait_s
    with writing(folder):
        lock = (folder / LOCK_FILE).open("a")
    with lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as err:
                if time.monotonic() > deadline:
                    raise BuildError(
                        f"somebody else has been publishing here for {wait_s:g} s",
                        source=str(folder),
                        remedy="wait for it to finish, then try again",
                    ) from err
            time.sleep(_POLL_S)
        yield


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
