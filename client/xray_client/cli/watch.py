"""`xray-client watch`: classify what arrives in a folder, once each, also over restarts."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from xray_client._client import XrayClient
from xray_client._config import PRIORITIES, Priority
from xray_client._exceptions import ImageError, RequestRejected, ServerNotReady, ServerUnreachable, XrayError
from xray_client._models import Failure

from .options import EXIT_CODES, say, server_options
from .paths import is_image

_JOURNAL = ".xray-client.jsonl"
# Seconds between two tries while the server cannot be used.
_SERVER_PAUSE = 5.0
# What is wrong with the file, and would be next time too. Everything else is asked again.
_FINAL = (ImageError, RequestRejected)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A file as it lay there: the same name with other contents is another arrival."""

    file: str
    size: int
    modified_ns: int


class Journal:
    """The answers so far, one JSON object a line: what is in it is not asked again.

    A line holds the keys of `--format jsonl`, and `size` and `modified_ns` of the file. A line that a crash or a full
    disk has cut off is taken away when the journal is opened.

    Args:
        path: The file; made where there is none.

    Raises:
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("a+b")
        _lock(self._file)
        self._file.seek(0)
        self._known: set[Arrival] = set()
        whole = 0
        for line in self._file:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._known.add(Arrival(row["file"], row["size"], row["modified_ns"]))
            if line.endswith(b"\n"):
                whole += len(line)
        self._file.truncate(whole)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, arrival: Arrival) -> bool:
        return arrival in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, arrival: Arrival, row: dict[str, Any]) -> str:
        """Write an answer down; gives the line."""
        line = json.dumps({**row, "size": arrival.size, "modified_ns": arrival.modified_ns})
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as err:  # going on would be to answer and to forget
            raise click.ClickException(f"the journal {self.path}: {err.strerror or err}") from err
        self._known.add(arrival)
        return line


def _lock(file: BinaryIO) -> None:
    """Keep a second watcher from the same journal, for as long as the file is open."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@click.command(epilog=EXIT_CODES, short_help="Classify what arrives in a folder, once each.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-r", "--recursive", is_flag=True, help="The folders in the folder as well.")
@click.option(
    "--journal",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"File that the answers are added to; what is in it is not asked again.  [default: FOLDER/{_JOURNAL}]",
)
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=1.0,
    show_default=True,
    help="Seconds between two looks. A file that grew since the last look is left for the next.",
)
@click.option("--once", is_flag=True, help="End when everything that lies there is answered.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Before others in the server's queue, or not.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images being read or sent at a time.")  # fmt: skip
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
    """Classify what arrives in FOLDER, each file once, until Ctrl-C or SIGTERM; a line of JSON for each on stdout.

    A file that cannot be read is answered with its error, once. While the server cannot be used, nothing is lost: the
    files wait, and are asked when it is back.
    """
    try:
        book = Journal(journal or folder / _JOURNAL)
    except OSError as err:
        reason = "another watch has it open" if isinstance(err, BlockingIOError) else err.strerror or err
        raise click.UsageError(f"the journal {journal or folder / _JOURNAL}: {reason}") from err
    with book, _terminated_like_interrupted():
        say(f"xray-client: watching {folder}; {len(book)} answers in {book.path}")
        before: set[Arrival] = set()
        while True:
            there = set(_arrivals(folder, recursive, book.path))
            new = sorted((a for a in there if a not in book), key=lambda a: (a.modified_ns, a.file))
            settled = [arrival for arrival in new if arrival in before]
            answered = _answer(client, settled, book, jobs, priority) if settled else True
            before = there
            if once and answered and not any(a not in book for a in there):
                return
            time.sleep(every if answered else max(every, _SERVER_PAUSE))


def _answer(client: XrayClient, arrivals: list[Arrival], book: Journal, jobs: int, priority: Priority | None) -> bool:
    """Ask for all of these; False where the server could not be used, and what is left must be asked again."""
    try:
        _ = client.preprocessing
    except XrayError as err:
        say(f"xray-client: {err}; {len(arrivals)} files wait")
        return False
    by_file = {arrival.file: arrival for arrival in arrivals}
    waiting = 0
    with closing(
        client.classify_many(by_file, max_in_flight=jobs, ordered=False, heatmap=False, priority=priority)
    ) as answers:
        for answer in answers:
            if isinstance(answer, Failure) and not isinstance(answer.error, _FINAL):
                waiting += 1
                say(f"xray-client: {answer}; it is asked again")
                if isinstance(answer.error, ServerUnreachable | ServerNotReady):
                    return False
            else:
                click.echo(book.add(by_file[str(answer.file)], answer.to_dict()))
    return waiting == 0


def _arrivals(folder: Path, recursive: bool, journal: Path) -> Iterator[Arrival]:
    try:
        paths = sorted(folder.iterdir())
    except OSError as err:  # perhaps a network drive that comes back
        say(f"xray-client: {folder}: {err.strerror or err}")
        return
    for path in paths:
        with suppress(OSError):  # gone since it was listed
            if path.is_dir():
                if recursive and not path.is_symlink() and not path.name.startswith("."):
                    yield from _arrivals(path, recursive, journal)
            elif path.is_file() and path != journal and is_image(path):
                status = path.stat()
                yield Arrival(str(path), status.st_size, status.st_mtime_ns)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM, as service managers send it, ends the command as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
