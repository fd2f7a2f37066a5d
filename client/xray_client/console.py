"""Shared by every command line of the project: errors in one line, progress bars, signals, and commands by extra."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import track as _rich_track

from . import XrayError

T = TypeVar("T")

console = Console(stderr=True, highlight=False, markup=False)  # a path may hold [brackets]
if not console.is_terminal:
    console.width = 120  # tables in a log file or a pipe are not cut at 80 columns

_DISTRIBUTION = "medclip-triton"
# As Rust words it, in safetensors: "I/O error: No space left on device (os error 28)".
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_PACKAGES = ("xray_client", "xray_node", "xray_build", "finetune")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an `XrayError`, and what the operating system refuses, into one line and exit code 1.

    Anything else is a bug and keeps its trace.
    """
    try:
        yield
    except XrayError as err:
        raise click.ClickException(str(err)) from err
    except BrokenPipeError:  # whoever read the output has left: no trouble of ours
        raise
    except Exception as err:
        trouble = system_trouble(err)
        if trouble is None:
            raise
        raise click.ClickException(trouble) from err


def system_trouble(error: BaseException) -> str | None:
    """Describe in one line what the operating system refused: a full disk, no permission, a file that is not there.

    Args:
        error: The exception; libraries in other languages put the system's error into the text of their own.

    Returns:
        The system's words and the file's name; None for anything else, which is a bug.
    """
    if isinstance(error, OSError) and error.errno is not None:
        name = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else ""
        return f"{name}: {error.strerror}" if name else error.strerror or str(error)
    found = _OS_ERROR.search(str(error))
    return os.strerror(int(found[1])) if found else None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings, logs and progress bars of a library; its errors are raised."""
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


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Turn the import of a package that is not installed into one line that names the extra, and exit code 1.

    Args:
        extra: Extra of medclip-triton that brings the package.
        what: The command that needs it.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        words = missing_package(err, extra, what)
        if words is None:
            raise
        raise click.ClickException(words) from err


def missing_package(error: ModuleNotFoundError, extra: str, what: str) -> str | None:
    """Name in one line the extra that brings a package; None if it is one of the project's own, which is a bug.

    Args:
        error: What the import raised.
        extra: Extra of medclip-triton.
        what: The command that needs it.
    """
    missing = (error.name or "").partition(".")[0]
    if missing in _PACKAGES:
        return None
    return f"{what} needs {missing}, which is not installed: pip install '{_DISTRIBUTION}[{extra}]'"


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Command of a `LazyGroup`.

    Attributes:
        where: "module:attribute" of the `click.Command`.
        help: One line for the list of commands.
        extra: Extra of medclip-triton that brings what the module imports.
    """

    where: str
    help: str
    extra: str


class LazyGroup(click.Group):
    """Group whose commands are imported when they are called: it starts without what they need.

    Args:
        lazy: Its commands by name.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = dict(lazy)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        command = self.lazy[cmd_name]
        module, attribute = command.where.split(":")
        with needs_extra(command.extra, f"{ctx.command_path} {cmd_name}"):
            loaded = getattr(import_module(module), attribute)
        assert isinstance(loaded, click.Command)
        return loaded

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in self.lazy.items()])


def track(items: Iterable[T], what: str, *, total: int | None = None) -> Iterator[T]:
    """Iterate under a progress bar; without a terminal, just iterate."""
    if not console.is_terminal:
        yield from items
        return
    yield from _rich_track(items, description=what, total=total, console=console, transient=True)
