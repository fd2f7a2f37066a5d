"""What the benchmarks share: the machine in words, and engines in this process that are kept busy."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from xray_build.engines.build_record import installed
from xray_build.engines.runtime import Run


def describe_machine(tools: Sequence[str]) -> dict[str, Any]:
    """Processor, cores, load, Python, and the versions of these packages."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "tools": {tool: installed(tool) for tool in tools},
    }


def in_words(machine: dict[str, Any]) -> str:
    """Cores, load and tools as one sentence each, for above a table."""
    tools = ", ".join(f"{name} {version}" for name, version in machine["tools"].items())
    return (
        f"{machine['cores']} cores ({machine['cpu']}), load {machine['load_before']:.1f} before and "
        f"{machine.get('load_after', 0):.1f} after, of which the run itself makes up to {machine['cores']}. {tools}."
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def memory_mib(group: int) -> float:
    """MiB of a process group; what processes share counts once (PSS)."""
    found = [re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE) for text in _of_group(group, "smaps_rollup")]
    return sum(int(pss[1]) for pss in found if pss) / 1024


def processor_seconds(group: int) -> float:
    """Processor time that the processes of a group have had so far."""
    # After the name in brackets, which may hold spaces, the 12th and 13th field are user and system time.
    fields = [text.rpartition(")")[2].split() for text in _of_group(group, "stat")]
    return sum(int(user) + int(system) for *_, user, system in (each[:13] for each in fields)) / os.sysconf(
        "SC_CLK_TCK"
    )


def _of_group(group: int, file: str) -> list[str]:
    """That file of /proc for each process of the group."""
    texts = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if os.getpgid(int(folder.name)) == group:
                texts.append((folder / file).read_text())
    return texts


def rate(instances: Sequence[Run], images: np.ndarray, seconds: float, *, batch: int = 1) -> float:
    """Images a second of engines in this process, each called again as soon as it is done.

    Args:
        instances: Engines, each with a thread of its own that calls it.
        images: uint8 (n, 1, s, s), taken in turn.
        seconds: How long they are kept busy.
        batch: Images a call.
    """
    parts = [np.resize(np.roll(images, -i, axis=0), (batch, *images.shape[1:])) for i in range(len(images))]
    until = time.perf_counter() + seconds

    def work(run: Run) -> int:
        calls = 0
        while time.perf_counter() < until:
            run(parts[calls % len(parts)])
            calls += 1
        return calls * batch

    started = time.perf_counter()
    with ThreadPoolExecutor(len(instances)) as pool:
        done = sum(pool.map(work, instances))
    return done / (time.perf_counter() - started)
