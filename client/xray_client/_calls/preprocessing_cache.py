"""The preprocessing of the served model, by the version that answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xray_client._imaging.preprocessing import Preprocessing

from .deadline import Deadline
from .effects import Exclusive, Steps

# Takes the version to ask for ("" = the server chooses); gives the version that the answer is known to belong to
# ("" = unknown) and its preprocessing.
Fetch: TypeAlias = Callable[[str], Steps[tuple[str, Preprocessing]]]


class PreprocessingCache:
    """The preprocessing of each version of one served model, fetched once even when many calls need it at a time.

    Where neither the client nor the model's version policy names a version, it is fetched twice before the first
    answer: the configuration does not say which version it belongs to, and another server may serve another one.

    Args:
        model_version: The version that the client asks for; "" = the server chooses.
        source: The model and its server, as errors name them.
    """

    def __init__(self, model_version: str, source: str) -> None:
        self._model_version = model_version
        self._source = source
        self._current: Preprocessing | None = None
        self._by_version: dict[str, Preprocessing] = {}

    def current(self, fetch: Fetch, deadline: Deadline) -> Steps[Preprocessing]:
        """The preprocessing for the next image: that of the version that answered last."""

        def once() -> Steps[Preprocessing]:
            if self._current is None:
                version, self._current = yield from fetch(self._model_version)
                if version:
                    self._by_version[version] = self._current
            return self._current

        if self._current is not None:
            return self._current
        preprocessing: Preprocessing = yield Exclusive(once, deadline, lambda: deadline.exceeded(self._source))
        return preprocessing

    def of_version(self, version: str, fetch: Fetch, deadline: Deadline) -> Steps[Preprocessing]:
        """The preprocessing of a version that has just answered."""

        def once() -> Steps[Preprocessing]:
            if version not in self._by_version:
                _, self._by_version[version] = yield from fetch(version)
            return self._by_version[version]

        preprocessing = self._by_version.get(version)
        if preprocessing is None:
            preprocessing = yield Exclusive(once, deadline, lambda: deadline.exceeded(self._source))
        self._current = preprocessing
        return preprocessing
