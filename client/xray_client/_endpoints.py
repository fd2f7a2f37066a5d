"""Where the servers are: "host:port", several of them, or a name that stands for several."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from ._errors import ServerUnreachable

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
    def needs_lookup(self) -> bool:
        """Whether `target` asks the resolver, which may take its time."""
        return len(self.hosts) > 1 and not all(_is_address(host) for host, _ in self.hosts)

    def target(self) -> str:
        """What gRPC connects to.

        gRPC resolves one name by itself, and again when a connection is lost. Of several, it takes addresses alone:
        names in a list are looked up here, once; those that do not exist are left out.

        Raises:
            ServerUnreachable: None of several names exists.
        """
        if len(self.hosts) == 1:
            return self.url.strip()
        found: list[tuple[str, int]] = []
        failed = None
        for host, port in self.hosts:
            try:
                entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found += [(str(entry[4][0]), port) for entry in entries]
            except OSError as err:
                failed = err
        if not found:
            raise ServerUnreachable(
                "none of these names is known", remedy="check the address", source=self.url
            ) from failed
        # gRPC takes one family at a time. IPv4 where there is any: what listens on one alone listens on that.
        four = [f"{host}:{port}" for host, port in found if ":" not in host]
        if four:
            return "ipv4:" + ",".join(dict.fromkeys(four))
        return "ipv6:" + ",".join(dict.fromkeys(f"[{host}]:{port}" for host, port in found))

    def server_name(self) -> str:
        """Name that the certificates of several servers are checked for; "" where gRPC knows it by itself.

        Raises:
            ValueError: The servers have different names, and gRPC can look for one only.
        """
        if len(self.hosts) == 1:
            return ""
        names = {host for host, _ in self.hosts}
        if len(names) > 1:
            raise ValueError(
                "several servers over TLS need a name that all of their certificates hold: TLS(server_name=...)"
            )
        return names.pop()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)
