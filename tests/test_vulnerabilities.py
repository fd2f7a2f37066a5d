"""`make audit`: no network must never look like no vulnerabilities."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_where_the_database_cannot_be_reached_it_says_so_and_does_not_pass() -> None:
    pytest.importorskip("pip_audit", reason="pip-audit is not installed: pip install 'medclip-triton[dev]'")
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy"), "http://127.0.0.1:9")
    nowhere |= {"NO_PROXY": "", "no_proxy": ""}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [ROOT / ".ci" / "audit"]
    done = subprocess.run(
        command, env={**os.environ, **nowhere, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr
