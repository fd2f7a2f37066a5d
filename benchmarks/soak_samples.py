"""Memory and file handles of running programs over time, and how much they grow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

GROWTH = {"MB": 20.0, "handles": 20.0}


@dataclass
class Samples:
    """Seconds since the start, and each quantity at that time."""

    seconds: list[float] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, seconds: float, values: dict[str, float]) -> None:
        self.seconds.append(seconds)
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def growth(self, name: str) -> tuple[float, float, float]:
        """Level in the second half, what it grows by in that time, and what it may grow by."""
        half = len(self.seconds) // 2
        seconds, values = np.array(self.seconds[half:]), np.array(self.values[name][half:])
        first, second = np.triu_indices(len(seconds), 1)
        slope = float(np.median((values[second] - values[first]) / (seconds[second] - seconds[first])))
        level = float(np.median(values))
        return level, slope * float(seconds[-1] - seconds[0]), level / 10 + GROWTH[name.rpartition(", ")[2]]


def processes(group: int) -> list[int]:
    """Those of a process group: tritonserver, its stubs, and what decodes for them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((folder / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                found.append(int(folder.name))
    return found


def usage(pids: Sequence[int]) -> tuple[float, float]:
    """MB of memory that is resident, and file handles; of those that are gone meanwhile, nothing."""
    memory = handles = 0
    for pid in pids:
        with suppress(OSError):
            memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            handles += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return memory / 1e6, float(handles)
