"""Many images at a time: which are under way, which answer is due. Written once for threads and for asyncio."""

from __future__ import annotations

import os
from collections import deque
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Future(Protocol):
    """What futures of threads and of asyncio have in common."""

    def done(self) -> bool:
        """Whether its answer is there."""


F = TypeVar("F", bound=Future)


class Window(Generic[F]):
    """The answers under way, in the order in which their images were taken.

    Args:
        limit: No more than this many.
        ordered: Give the answers in that order; else as they come.
    """

    def __init__(self, limit: int, *, ordered: bool) -> None:
        self._limit = limit
        self._ordered = ordered
        self._waiting: deque[F] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether an answer must be given before another image is taken."""
        return len(self._waiting) >= self._limit

    def add(self, future: F) -> None:
        """Another image is under way."""
        self._waiting.append(future)

    def awaited(self) -> list[F]:
        """Those of which one must be done before `take` gives anything."""
        return [self._waiting[0]] if self._ordered else list(self._waiting)

    def take(self) -> F | None:
        """The answer that is due, if it is there."""
        for future in self.awaited() if self._waiting else ():
            if future.done():
                self._waiting.remove(future)
                return future
        return None

    def all(self) -> list[F]:
        """Everything under way."""
        return list(self._waiting)


def check_many(sources: Any, max_in_flight: int) -> None:
    """Refuse what cannot work, before the first image is taken."""
    if isinstance(sources, str | bytes | os.PathLike | np.ndarray):
        raise TypeError("classify_many takes several radiographs; for one there is classify")
    if max_in_flight < 1:
        raise ValueError(f"max_in_flight {max_in_flight!r} is below 1")
