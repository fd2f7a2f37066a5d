"""Set-up of the whole test run; the fixtures that several folders share are in `tests/helpers/fixtures_*.py`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# A shell that starts the tests in the background has Ctrl-C ignored, and every program they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.helpers.fixtures_data", "tests.helpers.fixtures_served", "tests.helpers.fixtures_built"]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Say how a process of pytest-xdist ended that should not have, which pytest-xdist itself does not."""
    if error is None:
        return
    try:
        code = node.gateway._io.popen.wait(10)
        how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    except subprocess.TimeoutExpired:
        how = "runs on, and says no more"
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    print(f"\n{node.gateway.id} {how}; ended by the kernel for memory: {counters['oom_kill']}", file=sys.stderr)
