"""Where the servers are: "host:port", several of them, or a name that stands for several."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s/:,\[\]]+):(\d{1,5})")
_DNS = "dns:///"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The servers of one client, all of which serve the same model.

    Attributes:
        url: As the user wrote it.
        hosts: Host and port of each.
        by_name: Whether one name stands for several servers ("dns:///").
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
        """Whether requests are spread, and go on where one server is lost."""
        return self.by_name or len(self.hosts) > 1

    @property
    def loopback(self) -> bool:
        """Whether nothing that is sent leaves this machine."""
        return all(_is_loopback(host) for host, _ in self.hosts)

    @property
    def targets(self) -> tuple[str, ...]:
        """What gRPC connects to, a channel each. It looks names up by itself, and again when a connection is lost."""
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
