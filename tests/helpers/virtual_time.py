"""Servers in virtual time: the effects of a call are carried out by a script, without gRPC and without waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from xray_client._calls.effects import Call, CallFailed, Effect, Pause, Steps, T, drive

Behaviour = Callable[["VirtualServers", Call], Any]


def answers(servers: VirtualServers, call: Call) -> str:
    """Answer at once."""
    return f"answer of {call.server}"


def hangs(servers: VirtualServers, call: Call) -> None:
    """Never answer: the attempt ends at its own deadline."""
    servers.now += call.timeout
    raise CallFailed("DEADLINE_EXCEEDED", "Deadline Exceeded")


def fails(status: str, details: str, *, after: float = 0.0) -> Behaviour:
    """Fail with a gRPC status, after so many seconds."""

    def fail(servers: VirtualServers, call: Call) -> None:
        servers.now += after
        raise CallFailed(status, details)

    return fail


class VirtualServers:
    """Carries out effects against servers that behave as told.

    Args:
        monkeypatch: Puts the virtual clock in the place of the real one.
        behaviours: Behaviour of each server.

    Attributes:
        now: The virtual time, seconds.
        calls: The calls that were sent.
        pauses: Seconds of each pause.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *behaviours: Behaviour) -> None:
        self.now = 1000.0
        self.behaviours = list(behaviours)
        self.calls: list[Call] = []
        self.pauses: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def run(self, steps: Steps[T]) -> T:
        """Carry these steps out."""
        return drive(steps, self._perform)

    @property
    def asked(self) -> list[int]:
        """The servers that calls were sent to, in that order."""
        return [call.server for call in self.calls]

    def _perform(self, effect: Effect) -> Any:
        if isinstance(effect, Call):
            self.calls.append(effect)
            return self.behaviours[effect.server](self, effect)
        assert isinstance(effect, Pause)
        self.pauses.append(effect.seconds)
        self.now += effect.seconds
        return None
