"""The lock of a model repository, and errors of its disk with their remedies."""

from __future__ import annotations

import errno
import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
