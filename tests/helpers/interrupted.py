"""Do something to a model repository again and again, interrupted one step later each time. A program for the tests.

    python interrupted.py kill|full ACTION BEFORE OUT

ACTION is done to copies of the repository BEFORE, in OUT/1, OUT/2 and so on. In OUT/n the process is killed just before
its n-th step, or told that the disk is full; a step is what changes the filesystem, and Python's audit events tell of
each. OUT/complete is what the action leaves when nothing happens to it.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.helpers.small_graph import publish_small
from xray_build.errors import BuildError
from xray_build.repository.publish import rollback

ACTIONS: dict[str, Callable[[Path], object]] = {
    "publish": lambda repository: publish_small(repository, geometry="pad"),
    "rollback": rollback,
}
# What changes the filesystem, and what of it a full disk refuses.
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.chmod"}
REFUSED = {"open", "os.mkdir", "os.rename"}
TYPED, UNTYPED, UNHARMED = 3, 4, 5


class Interruption:
    """Interrupt this process at its step `number`."""

    def __init__(self, mode: str, number: int, repository: Path) -> None:
        self.happened = False
        self._mode, self._number, self._repository = mode, number, str(repository)
        self._steps = itertools.count(1)
        sys.addaudithook(self._step)

    def _step(self, event: str, arguments: tuple) -> None:
        if event not in (CHANGES if self._mode == "kill" else REFUSED):
            return
        if not str(arguments[0]).startswith(self._repository):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if self._mode == "full" and str(arguments[0]).endswith("/model.onnx"):
            return  # the build writes it, not the publisher
        if next(self._steps) == self._number:
            self.happened = True
            if self._mode == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def act(mode: str, action: str, number: int, repository: Path) -> int:
    """In a child process: the action, interrupted; how it ended."""
    interruption = Interruption(mode, number, repository)
    try:
        ACTIONS[action](repository)
    except BuildError:
        return TYPED
    except BaseException:
        traceback.print_exc()
        return UNTYPED
    return UNHARMED if interruption.happened else 0


def main(mode: str, action: str, before: Path, out: Path) -> None:
    """One child process for each step, until one comes to the end."""
    for number in itertools.count(1):
        repository = Path(shutil.copytree(before, out / str(number)))
        child = os.fork()
        if not child:
            os._exit(act(mode, action, number, repository))
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended == 0:
            repository.rename(out / "complete")
            return
        if ended == UNHARMED:  # such as a folder that could not be made, and was there already
            shutil.rmtree(repository)
        elif ended != (-signal.SIGKILL if mode == "kill" else TYPED):
            raise SystemExit(f"step {number} ended with {ended}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
