"""Bookkeeping of a soak: requests and their outcomes, and the memory and file handles of the programs over time."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# Growth that is allowed beyond a tenth of the level, by unit.
GROWTH = {"MB": 20.0, "handles": 20.0}


class Ledger:
    """Requests, outcomes and faults, counted by all threads."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self._lock = threading.Lock()

    def ask(self, caller: str, count: int = 1) -> None:
        """Count requests, before they are sent."""
        with self._lock:
            self.asked[caller] += count

    def note(self, caller: str, outcome: str) -> None:
        """Count one answer or one error."""
        with self._lock:
            self.outcomes.setdefault(caller, Counter())[outcome] += 1

    def fault(self, description: str) -> None:
        """Keep what must never happen."""
        with self._lock:
            self.faults.append(description)

    def unanswered(self, caller: str) -> int:
        """Count requests without an outcome; below 0 = more outcomes than requests."""
        return self.asked[caller] - self.outcomes.get(caller, Counter()).total()


@dataclass
class Samples:
    """Quantities over time: seconds since the start, and each quantity's value then."""

    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: float, values: dict[str, float]) -> None:
        """Append one sample of every quantity."""
        self.seconds.append(seconds)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def growth(self, name: str) -> tuple[float, float, float]:
        """Level of a quantity in the second half, its growth in that time, and the growth that is allowed."""
        half = len(self.seconds) // 2
        seconds, values = np.array(self.seconds[half:]), np.array(self.values[name][half:])
        first, second = np.triu_indices(len(seconds), 1)
        slope = float(np.median((values[second] - values[first]) / (seconds[second] - seconds[first])))
        level = float(np.median(values))
        return level, slope * float(seconds[-1] - seconds[0]), level / 10 + GROWTH[name.rpartition(", ")[2]]


def usage(pids: Sequence[int]) -> tuple[float, float]:
    """Resident memory in MB and open file handles of these processes; one that has ended counts nothing."""
    memory = handles = 0
    for pid in pids:
        with suppress(OSError):
            memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            handles += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return memory / 1e6, float(handles)
