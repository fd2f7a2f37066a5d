"""One clock for a whole call: reading, preparing and every round trip share the same seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TypeVar

from ._errors import DeadlineExceeded, ImageUnreadable

T = TypeVar("T")

_MORE_TIME = "try again later, or allow more time with `timeout`"


class Deadline:
    """A moment `seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, above 0; raises `DeadlineExceeded` when there are none."""
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise self.exceeded()
        return seconds

    def exceeded(self, source: str = "") -> DeadlineExceeded:
        """The error to raise when this deadline has passed."""
        return DeadlineExceeded(f"no answer within {self.seconds:g} s", remedy=_MORE_TIME, source=source)


def read_within(deadline: Deadline, function: Callable[[], T], *, source: str) -> T:
    """Run a function that reads an image in a thread of its own, and give up on it at the deadline.

    A read from a network drive that has gone away can be neither timed nor interrupted, only left behind. The thread
    is a daemon, so it does not keep the interpreter alive either. Costs about 0.1 ms.

    Raises:
        ImageUnreadable: It did not end in time; what the function raises is raised as it is.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as err:  # handed to the caller, who raises it
            future.set_exception(err)

    threading.Thread(target=work, name="xray-client-read", daemon=True).start()
    try:
        return future.result(deadline.left())
    except FutureTimeout as err:
        if future.done():  # the function's own TimeoutError
            raise
        raise ImageUnreadable(
            f"reading it did not end within {deadline.seconds:g} s", remedy=_MORE_TIME, source=source
        ) from err
