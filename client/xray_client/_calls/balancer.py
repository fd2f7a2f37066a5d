"""Round-robin over several servers, with a cooldown for servers that failed."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence

# Seconds for which a failed server is left out, doubled each time. Asking one that refuses costs a millisecond.
FIRST_COOLDOWN, LONGEST_COOLDOWN = 0.5, 2.0
# Asking one that hangs costs a whole attempt: it is left out for several times as long as that took.
ATTEMPTS_TO_COOL_DOWN, LONGEST_COOLDOWN_AFTER_HANGING = 4, 60.0

_log = logging.getLogger("xray_client")


class Balancer:
    """The servers of one client, by their index among its endpoints; safe to share between threads.

    Args:
        addresses: The address of each, for the log.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._count = count = len(self._addresses)
        self._next = random.randrange(count)  # a thousand clients that start together do not all begin with one
        self._failures = [0] * count
        self._cooldown_until = [0.0] * count
        self._lock = threading.Lock()

    def choose(self, asked: Sequence[int]) -> int:
        """Choose the next available server in round-robin order, preferring those not asked yet.

        If all are cooling down, the one whose cooldown ends first.

        Args:
            asked: The servers that this request was sent to already, in that order.
        """
        if self._count == 1:
            return 0
        last = {server: place for place, server in enumerate(asked, 1)}
        now = time.monotonic()
        with self._lock:
            following = self._next

            def order(server: int) -> tuple[float, int, int]:
                until = self._cooldown_until[server]
                return (until if until > now else 0.0, last.get(server, 0), (server - following) % self._count)

            chosen = min(range(self._count), key=order)
            self._next = chosen + 1
            if self._failures[chosen]:  # one request at a time probes a server that failed
                self._cooldown_until[chosen] = now + LONGEST_COOLDOWN_AFTER_HANGING
        return chosen

    def others(self, asked: Sequence[int]) -> int:
        """Number of servers that are neither cooling down nor among those asked."""
        now = time.monotonic()
        return sum(self._cooldown_until[server] <= now for server in range(self._count) if server not in asked)

    def answered(self, server: int) -> None:
        """Mark the server healthy."""
        if self._failures[server]:
            with self._lock:
                self._failures[server], self._cooldown_until[server] = 0, 0.0
            _log.info("server %s answers again", self._addresses[server])

    def failed(self, server: int, *, after: float = 0.0) -> None:
        """Start the cooldown of a server that is unreachable or stopping, or that did not answer.

        Args:
            server: Index of the server.
            after: Seconds for which its answer was awaited; 0 = it refused at once.
        """
        longest = LONGEST_COOLDOWN_AFTER_HANGING if after else LONGEST_COOLDOWN
        with self._lock:
            cooldown = (FIRST_COOLDOWN + ATTEMPTS_TO_COOL_DOWN * after) * 2.0 ** min(self._failures[server], 16)
            cooldown = min(longest, cooldown)
            self._failures[server] += 1
            self._cooldown_until[server] = time.monotonic() + cooldown
        if self._count > 1:
            _log.info("server %s failed and is left out for %.1f s", self._addresses[server], cooldown)
