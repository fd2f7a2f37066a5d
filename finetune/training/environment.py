"""Environment of a run: machine, packages, commit, memory. Saved with it, so that it can be reproduced."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """Command, commit, machine and every installed package, as JSON values."""
    return {
        "command": ["python", "-m", "finetune.run", *sys.argv[1:]],
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "packages": dict(sorted({(d.name, d.version) for d in distributions() if d.name})),
    }


def peak_memory() -> int:
    """Peak memory of this process so far, in bytes."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def data_hash(items: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (SHA-256 of a file, label) pairs, whatever their order: same radiographs, same hash."""
    lines = sorted(f"{digest} {label}\n" for digest, label in items)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _commit() -> str | None:
    """Commit of this checkout, followed by "-dirty" if files differ; None if installed without one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parents[1]),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
