"""Which preprocessing the served model wants, by the version that answers."""

from __future__ import annotations

from collections.abc import Callable

from xray_client._imaging.preprocessing import Preprocessing

from .deadline import Deadline
from .effects import Alone, Steps

Ask = Callable[[str], Steps[Preprocessing]]


class ServedRecords:
    """The preprocessing records of one served model, each read from the server once, whoever asks at the same time.

    Args:
        model_version: The version that the client asks for; "" = the server chooses.
        source: What errors call the model and its server.
    """

    def __init__(self, model_version: str, source: str) -> None:
        self._model_version = model_version
        self._source = source
        self._current: Preprocessing | None = None
        self._by_version: dict[str, Preprocessing] = {}

    def current(self, ask: Ask, deadline: Deadline) -> Steps[Preprocessing]:
        """What to prepare the next image with: the record of the version that answered last."""

        def once() -> Steps[Preprocessing]:
            if self._current is None:
                self._current = yield from ask(self._model_version)
            return self._current

        if self._current is not None:
            return self._current
        record: Preprocessing = yield Alone(once, deadline, lambda: deadline.exceeded(self._source))
        return record

    def of_version(self, version: str, ask: Ask, deadline: Deadline) -> Steps[Preprocessing]:
        """The record of a version that has just answered."""

        def once() -> Steps[Preprocessing]:
            if version not in self._by_version:
                self._by_version[version] = yield from ask(version)
            return self._by_version[version]

        record = self._by_version.get(version)
        if record is None:
            record = yield Alone(once, deadline, lambda: deadline.exceeded(self._source))
        self._current = record
        return record
