"""The machine that is measured on, in words, and memory and processor time of groups of its processes."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from xray_build.engines.build_record import installed


def describe_machine(tools: Sequence[str]) -> dict[str, Any]:
    """Describe processor, cores, load, Python, and the versions of these packages."""
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
    """Memory of a process group in MiB; shared pages count once (PSS)."""
    found = [re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE) for text in _read_each(group, "smaps_rollup")]
    return sum(int(pss[1]) for pss in found if pss) / 1024


def processor_seconds(group: int) -> float:
    """Processor time that the processes of a group have had so far."""
    # After the name in brackets, which may hold spaces, the 12th and 13th field are user and system time.
    fields = [text.rpartition(")")[2].split() for text in _read_each(group, "stat")]
    return sum(int(user) + int(system) for *_, user, system in (each[:13] for each in fields)) / os.sysconf(
        "SC_CLK_TCK"
    )


def processes_of(group: int) -> list[int]:
    """Process ids of a group, such as tritonserver, its stubs, and their decoders."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if os.getpgid(int(folder.name)) == group:
                found.append(int(folder.name))
    return found


def _read_each(group: int, file: str) -> list[str]:
    """Read that file of /proc for each process of the group."""
    texts = []
    for pid in processes_of(group):
        with suppress(OSError):  # it has ended meanwhile
            texts.append(Path(f"/proc/{pid}/{file}").read_text())
    return texts
