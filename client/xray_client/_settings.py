"""What a client is told once, checked when it is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ._endpoints import Endpoints
from ._tls import TLS

Priority: TypeAlias = Literal["stat", "routine"]

# As Triton counts: 1 is served first. A model without priority levels takes no notice.
PRIORITIES: Mapping[str, int] = {"stat": 1, "routine": 2}

LONGEST_TIMEOUT = 86_400.0
_HEADER_NAME = re.compile(r"[a-z0-9_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_OURS = ("authorization", "traceparent", "x-request-id")


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of `XrayClient`, which explains them.

    Raises:
        ValueError: An argument that cannot work.
    """

    url: str
    model: str
    model_version: str
    timeout: float
    retries: int | None = None
    tls: TLS | None = None
    token: Callable[[], str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempt_timeout: float | None = None
    endpoints: Endpoints = field(init=False)

    def __post_init__(self) -> None:
        if not 0 < self.timeout <= LONGEST_TIMEOUT:
            raise ValueError(f"timeout {self.timeout!r} is not a number of seconds above 0, at most a day")
        if self.attempt_timeout is not None and not 0 < self.attempt_timeout <= LONGEST_TIMEOUT:
            raise ValueError(
                f"attempt_timeout {self.attempt_timeout!r} is not a number of seconds above 0, at most a day"
            )
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries {self.retries!r} is below 0")
        endpoints = Endpoints.parse(self.url)
        object.__setattr__(self, "endpoints", endpoints)
        if self.token is not None and self.tls is None and not endpoints.loopback:
            raise ValueError("a token would cross the network in the clear: give tls=TLS(...) as well")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
                raise ValueError(f"{name!r} is no name of a header: lower-case letters, digits, '-', '_' and '.'")
            if name in _OURS:
                raise ValueError(f"the header {name!r} is set by the client itself")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the value of the header {name!r} is not of printable ASCII")  # a secret: not shown

    @property
    def source(self) -> str:
        """What errors call the model and its server."""
        return f"{self.model} at {self.url}"
