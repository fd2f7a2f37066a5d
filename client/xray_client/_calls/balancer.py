"""Which of several servers is asked next: each in turn, and those that were lost not before all others."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

# Seconds that a lost server is left out for, doubled each time. Asking one that refuses costs a millisecond.
FIRST_REST, LONGEST_REST = 0.5, 2.0
# Asking one that hangs costs a whole attempt: it is left out for several times as long as that took.
ATTEMPTS_TO_REST, LONGEST_REST_OF_ONE_THAT_HANGS = 4, 60.0


class Servers:
    """The servers of one client, by their place among its endpoints; safe to share between threads.

    Args:
        count: How many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._turn = random.randrange(count)  # a thousand clients that start together do not all begin with one
        self._losses = [0] * count
        self._rests_until = [0.0] * count
        self._lock = threading.Lock()

    def choose(self, asked: Sequence[int]) -> int:
        """Whom to ask: the next in turn of those that are not left out, one that was not asked yet before others.

        Where all are left out, the one that was for the longest.

        Args:
            asked: Whom this request was sent to already, in that order.
        """
        if self._count == 1:
            return 0
        last = {server: place for place, server in enumerate(asked, 1)}
        now = time.monotonic()
        with self._lock:
            turn = self._turn

            def order(server: int) -> tuple[float, int, int]:
                until = self._rests_until[server]
                return (until if until > now else 0.0, last.get(server, 0), (server - turn) % self._count)

            chosen = min(range(self._count), key=order)
            self._turn = chosen + 1
            if self._losses[chosen]:  # one request at a time finds out whether it is back
                self._rests_until[chosen] = now + LONGEST_REST_OF_ONE_THAT_HANGS
        return chosen

    def others(self, asked: Sequence[int]) -> int:
        """How many are neither left out nor among those asked."""
        now = time.monotonic()
        return sum(self._rests_until[server] <= now for server in range(self._count) if server not in asked)

    def answered(self, server: int) -> None:
        """It is there."""
        if self._losses[server]:
            with self._lock:
                self._losses[server], self._rests_until[server] = 0, 0.0

    def lost(self, server: int, *, after: float = 0.0) -> None:
        """It cannot be reached or is going away; or it did not answer within so many seconds."""
        longest = LONGEST_REST_OF_ONE_THAT_HANGS if after else LONGEST_REST
        with self._lock:
            rest = (FIRST_REST + ATTEMPTS_TO_REST * after) * 2.0 ** min(self._losses[server], 16)
            self._losses[server] += 1
            self._rests_until[server] = time.monotonic() + min(longest, rest)
