"""Which preprocessing the served model wants, by the version that answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ._deadline import Deadline
from ._preprocessing import Preprocessing
from ._transport import Transport


class ServedRecords:
    """The preprocessing records of one served model, each read from the server once. Safe to share between threads.

    Args:
        transport: Where to ask.
        model_version: The version that the client asks for; "" = the server chooses.
    """

    def __init__(self, transport: Transport, model_version: str) -> None:
        self._transport = transport
        self._model_version = model_version
        self._lock = threading.Lock()
        self._current: Preprocessing | None = None
        self._by_version: dict[str, Preprocessing] = {}

    def current(self, deadline: Deadline) -> Preprocessing:
        """What to prepare the next image with: the record of the version that answered last."""
        record = self._current
        if record is None:
            with self._locked(deadline):
                record = self._current
                if record is None:
                    record = self._current = self._transport.preprocessing(self._model_version, deadline)
        return record

    def of_version(self, version: str, deadline: Deadline) -> Preprocessing:
        """The record of a version that has just answered."""
        record = self._by_version.get(version)
        if record is None:
            with self._locked(deadline):
                record = self._by_version.get(version)
                if record is None:
                    record = self._by_version[version] = self._transport.preprocessing(version, deadline)
        self._current = record
        return record

    @contextmanager
    def _locked(self, deadline: Deadline) -> Iterator[None]:
        if not self._lock.acquire(timeout=deadline.left()):
            raise deadline.exceeded(self._transport.source)
        try:
            yield
        finally:
            self._lock.release()
