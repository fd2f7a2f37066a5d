"""TCP ports of a local server: find free ones, hold them until it starts, and see which a process listens on."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

from .process import HOST, ServerStartError

DEFAULT_PORTS = {"port": 8001, "metrics_port": 8002}


class PortLostError(Exception):
    """tritonserver found a port taken that was free a moment before."""

    def __init__(self, port: int) -> None:
        self.port = port


def hold_free_port(held: ExitStack, option: str, wanted: int | None, lost: set[int]) -> int:
    """Reserve a port until `held` closes: the wanted one, else the option's default, else any free one.

    Args:
        held: Closes the reservation.
        option: "port" or "metrics_port".
        wanted: Port that the caller asked for; 0 = any free one, None = the default or any free one.
        lost: Ports that another process took after they were found free.

    Raises:
        ServerStartError: The wanted port is in use.
    """
    if wanted is not None:
        try:
            return _hold_port(held, wanted)
        except OSError as err:
            raise port_in_use(option, wanted, err) from err
    default = DEFAULT_PORTS[option]
    with suppress(OSError):
        return _hold_port(held, 0 if default in lost else default)
    return _hold_port(held, 0)


def _hold_port(held: ExitStack, port: int) -> int:
    """Listen on a port; 0 = any free one."""
    holder = held.enter_context(socket.socket())
    # tritonserver does the same, so a port whose last connections are closing counts as free.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((HOST, port))
    holder.listen()
    return int(holder.getsockname()[1])


def port_in_use(option: str, port: int, err: OSError | None = None) -> ServerStartError:
    """Make the error for a port that cannot be had."""
    message = f"port {port} is in use"
    if err is not None and err.errno != errno.EADDRINUSE:
        message = f"cannot listen on port {port}: {err.strerror}"
    return ServerStartError(message, remedy=f"choose another with --{option.replace('_', '-')} or leave it out")


def listening_ports(pid: int) -> set[int]:
    """TCP ports that a process listens on; empty once it has ended."""
    ports = set()
    try:
        sockets = {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, address, _, state, *_, inode = line.split()[:10]
                if state == "0A" and f"socket:[{inode}]" in sockets:
                    ports.add(int(address.rpartition(":")[2], 16))
    except OSError:
        return set()
    return ports
