"""Fixtures that cost minutes, made once for all processes of a test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Make a folder in the first process that wants it; the others wait, and read what it made.

    Args:
        factory: Fixture `tmp_path_factory`.
        name: Name of the folder.
        make: Function that fills the empty folder.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all processes
    folder, complete = root / name, root / f"{name}.complete"
    with FileLock(root / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed: the error comes again, and whole
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
