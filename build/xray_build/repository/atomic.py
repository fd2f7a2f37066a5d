"""The lock of a model repository, and errors of its disk with their remedies."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

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
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a `BuildError` that names the file and the remedy.

    Args:
        path: Named where the operating system does not name a file.
    """
    try:
        yield
    except OSError as err:
        raise BuildError(
            f"cannot be written: {err.strerror or err}",
            source=str(err.filename or path),
            remedy=_REMEDIES.get(err.errno or 0, ""),
        ) from err


@contextmanager
def locked(folder: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the folder's lock against other threads and processes; the kernel releases it if this process dies.

    Raises:
        BuildError: Another publisher has held it for `wait_s` seconds, or the folder cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE, timeout=wait_s, poll_interval=_POLL_S)
    with writing(folder):
        try:
            lock.acquire()
        except Timeout as err:
            raise BuildError(
                f"somebody else has been publishing here for {wait_s:g} s",
                source=str(folder),
                remedy="wait for it to finish, then try again",
            ) from err
    try:
        yield
    finally:
        lock.release()
