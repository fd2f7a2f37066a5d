"""Effects of a call, described without carrying any of them out.

`operations.py` is written once, as generators that yield these effects and are sent the results. Carrying them out, and
waiting, is left to the two transports: `drive` with threads, `drive_async` with asyncio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from xray_client._exceptions import XrayError

from .deadline import Deadline

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """Send a request to a method of Triton's service; gives the response, raises `CallFailed`."""

    method: str
    request: Any
    timeout: float
    metadata: tuple[tuple[str, str], ...]
    server: int = 0  # its index among the client's endpoints


@dataclass(frozen=True, slots=True)
class Work:
    """Run a function that may block; gives its result, raises its exception.

    A function that does not end before the deadline is abandoned, and `late()` is raised.

    Attributes:
        reading: The function reads the caller's image and holds no lock of the client. A thread that may be abandoned
            itself runs such a function without a second thread.
    """

    function: Callable[[], Any]
    deadline: Deadline
    late: Callable[[], XrayError]
    reading: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Exclusive:
    """Carry these steps out while no other call of this client does so; raises `late()` at the deadline."""

    steps: Callable[[], Steps[Any]]
    deadline: Deadline
    late: Callable[[], XrayError]


Effect: TypeAlias = Call | Work | Pause | Exclusive
# The type of a sent result depends on the effect, which a generator's type cannot say.
Steps: TypeAlias = Generator[Effect, Any, T]


class CallFailed(Exception):  # noqa: N818 - an event; `retry.py` decides what to raise
    """A call without a response, as gRPC reported it.

    Attributes:
        status: Name of the gRPC status.
        details: The message that came with it.
    """

    def __init__(self, status: str, details: str) -> None:
        super().__init__(status, details)
        self.status = status
        self.details = details


def drive(steps: Steps[T], perform: Callable[[Effect], Any]) -> T:
    """Carry out steps one after the other and return their result."""
    try:
        effect = next(steps)
        while True:
            try:
                result = perform(effect)
            except BaseException as err:
                effect = steps.throw(err)
            else:
                effect = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value


async def drive_async(steps: Steps[T], perform: Callable[[Effect], Awaitable[Any]]) -> T:
    """`drive`, awaiting each effect."""
    try:
        effect = next(steps)
        while True:
            try:
                result = await perform(effect)
            except BaseException as err:
                effect = steps.throw(err)
            else:
                effect = steps.send(result)
    except StopIteration as end:
        value: T = end.value
        return value
