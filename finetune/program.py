"""Troubles of `python -m finetune.run` and its like before their command line is there, in one line each."""

from __future__ import annotations

import sys
from types import TracebackType

from xray_client.console import missing_package, system_trouble

_EXTRA = "train"


def plain_start() -> None:
    """Print one line for a missing package, what the system refuses, or Ctrl-C; a trace is left for bugs."""
    sys.excepthook = _in_one_line


def _in_one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        line: str | None = "interrupted"
    elif isinstance(error, ModuleNotFoundError):
        line = missing_package(error, _EXTRA, "python -m finetune")
    else:
        line = system_trouble(error)
    if line is None:
        sys.__excepthook__(kind, error, trace)
    else:
        print(f"Error: {line}", file=sys.stderr)
