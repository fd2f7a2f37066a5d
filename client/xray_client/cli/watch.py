"""`xray-client watch`: classify the files that arrive in a folder, each once, even across restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from xray_client import (
    Failure,
    ImageError,
    Priority,
    RequestRejected,
    ServerNotReady,
    ServerUnreachable,
    XrayClient,
    XrayError,
)
from xray_client._config import PRIORITIES
from xray_client.console import signals_interrupt
from xray_client.image_files import is_image_file

from .options import EXIT_CODES, note, server_options

_JOURNAL = ".xray-client.jsonl"
# Seconds between two attempts while the server cannot be used.
_SERVER_PAUSE = 5.0
# Errors of the file itself, final; after any other error the file is sent again.
_FINAL = (ImageError, RequestRejected)


@dataclass(frozen=True, slots=True)
class Arrival:
    """File as it was when it was seen: the same name with other contents is another arrival."""

    file: str
    size: int
    modified_ns: int


class Journal:
    """Journal of the answers, one JSON object a line; an arrival that is in it is not classified again.

    A line has the keys of `--format jsonl`, and `size` and `modified_ns` of the file. An incomplete last line, from a
    crash or a full disk, is removed when the journal is opened.

    Args:
        path: The journal's file, made if it does not exist.

    Raises:
        BlockingIOError: Another process has the journal open.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("a+b")
        _lock(self._file)
        self._file.seek(0)
        self._known: set[Arrival] = set()
        complete = 0  # bytes
        for line in self._file:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._known.add(Arrival(row["file"], row["size"], row["modified_ns"]))
            if line.endswith(b"\n"):
                complete += len(line)
        self._file.truncate(complete)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, arrival: Arrival) -> bool:
        return arrival in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, arrival: Arrival, row: dict[str, Any]) -> str:
        """Append an answer, and return its line."""
        line = json.dumps({**row, "size": arrival.size, "modified_ns": arrival.modified_ns})
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as err:  # without the journal, a restart would classify everything again
            raise click.ClickException(f"the journal {self.path}: {err.strerror or err}") from err
        self._known.add(arrival)
        return line


def _lock(file: BinaryIO) -> None:
    """Lock the journal against a second process, for as long as the file is open."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@click.command(epilog=EXIT_CODES, short_help="Classify files as they arrive in a folder.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-r", "--recursive", is_flag=True, help="Descend into folders in FOLDER.")
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File to append the answers to; a file that is in it is not classified again.  [default: FOLDER/{_JOURNAL}]",
)
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=1.0,
    show_default=True,
    help="Seconds between two scans; a file that changed since the last scan waits for the next.",
)
@click.option("--once", is_flag=True, help="End when every file in FOLDER has an answer.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Priority in the server's queue.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images to read or send at the same time.")  # fmt: skip
@server_options
def watch(
    client: XrayClient,
    folder: Path,
    recursive: bool,
    journal: Path | None,
    every: float,
    once: bool,
    priority: Priority | None,
    jobs: int,
) -> None:
    """Classify files as they arrive in FOLDER, each once, until Ctrl-C or SIGTERM; prints a line of JSON for each.

    A file that cannot be read is answered once, with its error. While the server cannot be used, the files wait and are
    classified when it is back.
    """
    try:
        answers = Journal(journal or folder / _JOURNAL)
    except OSError as err:
        reason = "another watch has it open" if isinstance(err, BlockingIOError) else err.strerror or err
        raise click.UsageError(f"the journal {journal or folder / _JOURNAL}: {reason}") from err
    with answers, signals_interrupt():
        note(f"watching {folder}; {len(answers)} answers in {answers.path}")
        before: set[Arrival] = set()
        while True:
            now = set(_arrivals(folder, recursive, answers.path))
            new = sorted((a for a in now if a not in answers), key=lambda a: (a.modified_ns, a.file))
            unchanged = [arrival for arrival in new if arrival in before]
            answered = _answer(client, unchanged, answers, jobs, priority) if unchanged else True
            before = now
            if once and answered and not any(a not in answers for a in now):
                return
            time.sleep(every if answered else max(every, _SERVER_PAUSE))


def _answer(
    client: XrayClient, arrivals: list[Arrival], journal: Journal, jobs: int, priority: Priority | None
) -> bool:
    """Classify these files; False if some must be sent again because of the server."""
    try:
        _ = client.preprocessing
    except XrayError as err:
        note(f"{err}; {len(arrivals)} files wait")
        return False
    by_file = {arrival.file: arrival for arrival in arrivals}
    waiting = 0
    with closing(
        client.classify_many(by_file, max_in_flight=jobs, ordered=False, heatmap=False, priority=priority)
    ) as answers:
        for answer in answers:
            if isinstance(answer, Failure) and not isinstance(answer.error, _FINAL):
                waiting += 1
                note(f"{answer}; it will be sent again")
                if isinstance(answer.error, ServerUnreachable | ServerNotReady):
                    return False
            else:
                click.echo(journal.add(by_file[str(answer.file)], answer.to_dict()))
    return waiting == 0


def _arrivals(folder: Path, recursive: bool, journal: Path) -> Iterator[Arrival]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as err:  # perhaps a network drive that comes back
        note(f"{folder}: {err.strerror or err}")
        return
    for path in paths:
        with suppress(OSError):  # deleted since it was listed
            if path.is_dir():
                if recursive and not path.is_symlink() and not path.name.startswith("."):
                    yield from _arrivals(path, recursive, journal)
            elif path.is_file() and path != journal and is_image_file(path):
                status = path.stat()
                yield Arrival(str(path), status.st_size, status.st_mtime_ns)
