"""One clock for a whole call: reading, preparing, every round trip and every retry share the same seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from xray_client._exceptions import DeadlineExceeded, ImageUnavailable

T = TypeVar("T")

_MORE_TIME = "try again later, or allow more time with `timeout`"


class Deadline:
    """A moment `seconds` from now."""

    __slots__ = ("_end", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, above 0; raises `DeadlineExceeded` when there are none."""
        seconds = self.remaining
        if seconds <= 0:
            raise self.exceeded()
        return seconds

    @property
    def remaining(self) -> float:
        """Seconds left; 0 or below when the deadline has passed."""
        return self._end - time.monotonic()

    def within(self, seconds: float) -> bool:
        """True if at most this many seconds are left."""
        return self.remaining <= seconds

    @property
    def passed(self) -> bool:
        """True if no time is left."""
        return self.within(0.0)

    def exceeded(self, source: str = "") -> DeadlineExceeded:
        """The error to raise when this deadline has passed."""
        return DeadlineExceeded(f"no answer within {self.seconds:g} s", remedy=_MORE_TIME, source=source)

    def unread(self, source: str) -> ImageUnavailable:
        """The error to raise for an image that could not be read in time."""
        return ImageUnavailable(f"reading it did not end within {self.seconds:g} s", remedy=_MORE_TIME, source=source)


def in_the_background(function: Callable[[], T]) -> Future[T]:
    """Run a function in a thread of its own, which can be abandoned.

    A read from a network drive that has gone away can be neither timed nor interrupted. The thread is a daemon, so it
    does not keep the interpreter alive either. Costs about 0.1 ms.
    """
    future: Future[T] = Future()

    def work() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function()
        except BaseException as err:  # handed to the caller, who raises it
            future.set_exception(err)
        else:
            future.set_result(result)

    threading.Thread(target=work, name="xray-client-read", daemon=True).start()
    return future
