"""Entry points of the console scripts: light, so that Ctrl-C while the rest is imported ends them without a trace."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

_INTERRUPTED = 130


def client() -> None:
    """Run `xray-client`."""
    _run("xray_client.cli.main", refused=4)


def build() -> None:
    """Run `xray-build`."""
    _run("xray_build.cli", refused=1)


def server() -> None:
    """Run `xray-server`."""
    _run("xray_build.triton.server", refused=1)


def _run(module: str, *, refused: int) -> None:
    """Import a module and run its `main`; `refused` is the exit code where the system refuses to go on."""
    _open_closed_streams()
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as a shell sets it for what runs in the background
    if not ignored:
        signal.signal(signal.SIGINT, _end)
    main = import_module(module).main
    if not ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except OSError as err:
        if err.errno is None:  # a library's own: a bug, which keeps its trace
            raise
        # Commands name the files that they cannot use; what comes up to here is mostly a full standard output.
        file = f"{err.filename}: " if err.filename else ""
        _say(f"the system refused to go on: {file}{err.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it ends
        sys.exit(refused)


def _open_closed_streams() -> None:
    """Open standard streams that the caller has closed on nothing, so that no other file gets their number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115, PTH123 - for as long as the program runs


def _end(_signal: int, _frame: object) -> None:
    _say("interrupted")
    os._exit(_INTERRUPTED)


def _say(words: str) -> None:
    name = sys.argv[0].rpartition("/")[2]
    with suppress(OSError):  # nobody reads it
        os.write(2, f"{name}: {words}\n".encode(errors="replace"))
