"""The context that all requests of one call share: deadline, request id, trace."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from .deadline import Deadline

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-([0-9a-f]{2})")


@dataclass(slots=True)
class RequestContext:
    """One call of the client, as its requests see it.

    Nothing in it tells of the patient: the ids are random, and the file's name is not a part of it.

    Attributes:
        deadline: The deadline of the whole call.
        traceparent: The caller's trace, as W3C Trace Context writes it; None = a trace of its own.
        retries: Requests that failed for a passing reason are sent again.
        request_id: Random id, 16 hexadecimal digits.
        attempts: Attempts of the last request.
    """

    deadline: Deadline
    traceparent: str | None = None
    retries: bool = True
    request_id: str = field(default_factory=lambda: os.urandom(8).hex())
    attempts: int = 0
    _trace: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        if self.traceparent is None:
            self._trace = os.urandom(16).hex(), "00"
            return
        match = _TRACEPARENT.fullmatch(self.traceparent)
        if match is None:
            raise ValueError(f"traceparent {self.traceparent!r} is not one of W3C Trace Context, version 00")
        self._trace = match[1], match[2]

    def span(self) -> str:
        """The trace context of the next request (https://www.w3.org/TR/trace-context/)."""
        trace_id, flags = self._trace
        return f"00-{trace_id}-{os.urandom(8).hex()}-{flags}"
