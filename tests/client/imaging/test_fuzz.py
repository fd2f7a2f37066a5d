"""The reader under damaged files; `python -m tests.client.imaging.fuzz` does the same for as long as you like."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="makes the damaged files; installed by the extra `dev`")

ROOT = Path(__file__).resolve().parents[3]


def test_damaged_files_give_a_grey_image_or_an_error_of_the_tree_within_2_gb() -> None:
    """In a process of its own, with a limit of its own: what brings the interpreter down is a failure too."""
    command = [
        sys.executable,
        "-m",
        "tests.client.imaging.fuzz",
        "--seconds",
        "0",
        "--examples",
        "3000",
        "--memory",
        "2048",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (\w+)", done.stdout)}
    assert counts["files"] >= 3000
    assert min(counts[name] for name in ("read", "ImageUnreadable", "ImageUnsupported", "ImageTooLarge")) >= 1
