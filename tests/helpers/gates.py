"""Gates that hold a request or a read until a test opens them: a clock on a busy machine proves nothing."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable

# Seconds after which a gate opens by itself: longer than any deadline in a test, shorter than the test's own limit.
LONGEST = 60.0


class Gate:
    """Closed until `open`; counts those who arrive.

    Example:
        fake.alter = gate.hold     # no inference is answered before gate.open()
    """

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._arrived = threading.Semaphore(0)

    def hold(self, *_: object) -> None:
        """Arrive, and wait until the gate is open."""
        self._arrived.release()
        self._opened.wait(LONGEST)

    def open(self) -> None:
        """Let everybody through from now on."""
        self._opened.set()

    def wait_for(self, count: int = 1) -> None:
        """Wait until so many more have arrived."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=LONGEST), "nobody arrived"

    @property
    def closed(self) -> bool:
        """True until it is opened."""
        return not self._opened.is_set()


def wait_until(true: Callable[[], object], seconds: float = LONGEST) -> None:
    """Wait until something is true; it must be within so many seconds."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


class HangingFile(io.RawIOBase):
    """A file on a drive that has gone away: reading it does not end before its gate is open, and then gives `data`."""

    def __init__(self, gate: Gate, data: bytes = b"") -> None:
        self._gate = gate
        self._data = data

    def read(self, size: int = -1) -> bytes:
        """Wait at the gate; the data, once."""
        self._gate.hold()
        data, self._data = self._data, b""
        return data
