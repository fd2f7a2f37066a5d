"""What a call of the client is made of, without doing any of it.

The core (`_core.py`) is written once, as generators that yield these steps and are sent the results. What carries the
steps out, and how it waits, is left to the two transports: `drive` with threads, `drive_async` with asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from .deadline import Deadline

T = TypeVar("T")
Steps: TypeAlias = Generator[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Call:
    """Send a request to a method of Triton's service; gives the response, raises `CallFailed`."""

    method: str
    request: Any
    timeout: float
    metadata: tuple[tuple[str, str], ...]
    server: int = 0  # its place among the client's endpoints


@dataclass(frozen=True, slots=True)
class Work:
    """Run a function that may take its time, away from whoever waits; gives its result, raises what it raises.

    Where it does not end before the deadline it is left behind, and `late()` is raised.
    """

    function: Callable[[], Any]
    deadline: Deadline
    late: Callable[[], Exception]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Alone:
    """Carry these steps out while no other call of this client does so; raises `late()` at the deadline."""

    steps: Callable[[], Steps[Any]]
    deadline: Deadline
    late: Callable[[], Exception]


class CallFailed(Exception):  # noqa: N818 - an event; the core decides what to raise
    """What gRPC said of a call that gave no response.

    Attributes:
        status: Name of the gRPC status.
        details: The words that came with it.
    """

    def __init__(self, status: str, details: str) -> None:
        super().__init__(status, details)
        self.status = status
        self.details = details


def drive(steps: Steps[T], perform: Callable[[Any], Any]) -> T:
    """Carry steps out one after the other, and give what they come to."""
    try:
        step = next(steps)
        while True:
            try:
                result = perform(step)
            except BaseException as err:
                step = steps.throw(err)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def drive_async(steps: Steps[T], perform: Callable[[Any], Awaitable[Any]]) -> T:
    """`drive`, where carrying out is awaited."""
    try:
        step = next(steps)
        while True:
            try:
                result = await perform(step)
            except BaseException as err:
                step = steps.throw(err)
            else:
                step = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
