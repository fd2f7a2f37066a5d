"""The window of images under way in `classify_many`, for threads and for asyncio."""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Pending(Protocol):
    """A result under way: a task of the workers or of asyncio."""

    def done(self) -> bool:
        """True if the result is there."""


F = TypeVar("F", bound=Pending)


class Window(Generic[F]):
    """The results under way, in the order in which their images were taken.

    Args:
        limit: Maximum number of results under way.
        ordered: Give the results in that order; else as they come.
    """

    def __init__(self, limit: int, *, ordered: bool) -> None:
        self._limit = limit
        self._ordered = ordered
        self._waiting: deque[F] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """True if a result must be given before another image is taken."""
        return len(self._waiting) >= self._limit

    def add(self, pending: F) -> None:
        """Add the result of another image."""
        self._waiting.append(pending)

    def awaited(self) -> list[F]:
        """Return the results of which one must be done before `take` gives anything."""
        return [self._waiting[0]] if self._ordered else list(self._waiting)

    def take(self) -> F | None:
        """Remove and return the next result that is done; None if there is none."""
        for pending in self.awaited() if self._waiting else ():
            if pending.done():
                self._waiting.remove(pending)
                return pending
        return None

    def all(self) -> list[F]:
        """Return everything under way."""
        return list(self._waiting)


def check_many(sources: Any, max_in_flight: int) -> None:
    """Refuse arguments that cannot work, before the first image is taken."""
    if isinstance(sources, str | bytes | os.PathLike | np.ndarray):
        raise TypeError("classify_many takes several radiographs; for one there is classify")
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight {max_in_flight!r} is below 1")
