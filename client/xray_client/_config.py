"""Validated configuration of a client: its servers, the security of the connection, deadlines and credentials."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ._exceptions import TLSFailed

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:,\[\]]+):(\d{1,5})")
_DNS = "dns:///"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The servers of one client, all of which serve the same model.

    Attributes:
        url: The address as it was given.
        hosts: Host and port of each server.
        by_name: True if one name stands for several servers ("dns:///").
    """

    url: str
    hosts: tuple[tuple[str, int], ...]
    by_name: bool = False

    @classmethod
    def parse(cls, url: str) -> Endpoints:
        """Read "host:port", "host1:port,host2:port" or "dns:///host:port"; anything else is a `ValueError`."""
        by_name = url.startswith(_DNS)
        hosts = []
        for part in url.removeprefix(_DNS).split(","):
            match = _HOST_PORT.fullmatch(part.strip())
            if not match or int(match[2]) > 65_535:
                raise ValueError(f"the server's address {part!r} is not host:port, such as 127.0.0.1:8001")
            hosts.append((match[1].strip("[]"), int(match[2])))
        if by_name and len(hosts) > 1:
            raise ValueError(f"{_DNS} takes one name, not {len(hosts)}")
        return cls(url, tuple(hosts), by_name)

    @property
    def several(self) -> bool:
        """True if requests are spread over several servers, with failover."""
        return self.by_name or len(self.hosts) > 1

    @property
    def loopback(self) -> bool:
        """True if every server runs on this machine, so that nothing leaves it."""
        return all(_is_loopback(host) for host, _ in self.hosts)

    @property
    def targets(self) -> tuple[str, ...]:
        """Addresses for gRPC, a channel each. It looks names up by itself, and again when a connection breaks."""
        if self.by_name:
            return (self.url.strip(),)
        return tuple(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


Pem: TypeAlias = "str | os.PathLike[str] | bytes"

_MARK = b"-----BEGIN "


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS of the connection. Each of the first three is a path, or the PEM itself as bytes.

    Args:
        ca: Certificates of the authorities that the server's certificate may come from; None = those that gRPC brings.
        cert: This client's certificate, for a server that asks for one (mutual TLS).
        key: The private key of `cert`.
        server_name: Name to look for in the certificate of every server, where that is not the host connected to.

    Raises:
        ValueError: One of `cert` and `key` without the other.

    Example:
        >>> TLS(ca="ca.pem", cert="me.pem", key="me.key")
        TLS(ca='ca.pem', cert='me.pem', server_name='')
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = field(default=None, repr=False)
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate: give both or neither")

    def read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Return the PEM of `ca`, `key` and `cert`, in the order that gRPC takes them; None where not given.

        Raises:
            TLSFailed: A file cannot be read or holds no PEM.
        """
        return _pem(self.ca, "ca"), _pem(self.key, "key"), _pem(self.cert, "cert")


def _pem(value: Pem | None, what: str) -> bytes | None:
    if value is None:
        return None
    name = "" if isinstance(value, bytes) else os.fspath(value)
    try:
        data = value if isinstance(value, bytes) else Path(value).read_bytes()
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise TLSFailed(f"the TLS {what} cannot be read: {reason}", remedy="check the path", source=name) from err
    if _MARK not in data:
        raise TLSFailed(f"the TLS {what} holds no PEM", remedy="convert it to PEM, for example by openssl", source=name)
    return data


Priority: TypeAlias = Literal["stat", "routine"]

# Triton's levels: 1 is served first. A model without priority levels takes no notice.
PRIORITIES: Mapping[str, int] = {"stat": 1, "routine": 2}

LONGEST_TIMEOUT = 86_400.0
_HEADER_NAME = re.compile(r"[a-z0-9_.-]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
_RESERVED = ("authorization", "traceparent", "x-request-id")


def check_timeout(seconds: float, name: str = "timeout") -> None:
    """Raise `ValueError` for a timeout that is not a number of seconds above 0, at most a day."""
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"{name} {seconds!r} is not a number of seconds above 0, at most a day")


@dataclass(frozen=True, slots=True)
class Settings:
    """Validated arguments of `XrayClient`, which explains them.

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
    isolate: bool = False
    endpoints: Endpoints = field(init=False)

    def __post_init__(self) -> None:
        check_timeout(self.timeout)
        if self.attempt_timeout is not None:
            check_timeout(self.attempt_timeout, "attempt_timeout")
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries {self.retries!r} is below 0")
        endpoints = Endpoints.parse(self.url)
        object.__setattr__(self, "endpoints", endpoints)
        if self.token is not None and self.tls is None and not endpoints.loopback:
            raise ValueError("a token would cross the network in the clear: give tls=TLS(...) as well")
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name) or name.startswith("grpc-") or name.endswith("-bin"):
                raise ValueError(f"{name!r} is no name of a header: lower-case letters, digits, '-', '_' and '.'")
            if name in _RESERVED:
                raise ValueError(f"the header {name!r} is set by the client itself")
            if not _HEADER_VALUE.fullmatch(value):
                raise ValueError(f"the value of the header {name!r} is not of printable ASCII")  # a secret: not shown

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that make a client of these settings, by name."""
        return {part.name: getattr(self, part.name) for part in fields(self) if part.init}

    @property
    def source(self) -> str:
        """The model and its server, as errors name them."""
        return f"{self.model} at {self.url}"
