"""What every command shares: errors without stack traces, and progress bars that are quiet when not on a terminal."""

from __future__ import annotations

import io
import logging
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TypeVar

import click
from rich.console import Console
from rich.progress import track as _rich_track

from . import XrayError

T = TypeVar("T")

console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console.width = 120  # tables in a log file or a pipe are not cut at 80 columns


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of ours into one line and exit code 1; anything else is a bug and keeps its trace."""
    try:
        yield
    except XrayError as err:
        raise click.ClickException(str(err)) from err


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes and progress bars of a talkative library out of our output; its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Let SIGTERM, and a terminal that closes unless `nohup` says otherwise, do what Ctrl-C does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Iterate under a progress bar; without a terminal, just iterate."""
    if not console.is_terminal:
        yield from items
        return
    yield from _rich_track(items, description=what, total=total, console=console, transient=True)
