"""`xray-client watch`: classify the files that arrive in a folder, each once, even across restarts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import click

from xray_client import (
    Failure,
    ImageError,
    ImageUnavailable,
    OutputRefused,
    Priority,
    RequestRejected,
    ServerNotReady,
    ServerUnreachable,
    XrayClient,
    XrayError,
)
from xray_client._config import PRIORITIES
from xray_client.console import signals_interrupt
from xray_client.files import check_output, sha256, write_atomically
from xray_client.image_files import is_image_file
from xray_client.parsing import parse_json

from .options import EXIT_CODES, ExitCode, note, server_options
from .writers import printable

_JOURNAL = ".xray-client.jsonl"
# Seconds between two attempts while the server cannot be used.
_SERVER_PAUSE = 5.0
# Seconds until a file that the system did not give is read again, at first and at most; the pause doubles.
_FILE_PAUSE, _LONGEST_FILE_PAUSE = 1.0, 300.0
# How often --once tries to read such a file.
_TRIES = 3
_JOURNAL_BEGINS = b'{"file": '


@dataclass(frozen=True, slots=True)
class Arrival:
    """File as it was when it was seen: the same name with other contents is another arrival.

    Attributes:
        file: Its path.
        size: Bytes.
        modified_ns: When its content changed, as whoever copied it says.
        changed_ns: When anything of it changed, as the system says.
    """

    file: str
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: str, status: os.stat_result) -> Arrival:
        """Take down a file."""
        return cls(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def named(self) -> tuple[str, int, int]:
        """Name, size and time, which a file with other contents may share."""
        return self.file, self.size, self.modified_ns


class Journal:
    """Journal of the answers, one JSON object a line; an arrival that is in it is not classified again.

    A line has the keys of `--format jsonl`, and `size`, `modified_ns`, `changed_ns` and `sha256` of the file. A file
    whose permissions or links changed is known by its content. An incomplete last line, from a crash or a full disk, is
    removed when the journal is opened.

    Args:
        path: The journal's file, made if it does not exist.

    Raises:
        OutputRefused: There is something else in the file.
        BlockingIOError: Another process has the journal open.
        OSError: The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        check_output(path, ours=lambda head: head.startswith(_JOURNAL_BEGINS))
        self.path = path
        self._file: BinaryIO = path.open("a+b")
        _lock(self._file)
        self._file.seek(0)
        # Times of change and content of all that had a name, size and time; a line of release 0.2 has None for both.
        self._known: dict[tuple[str, int, int], set[int | str | None]] = {}
        self._count = 0
        complete = 0  # bytes
        for line in self._file:
            with suppress(ValueError, KeyError, TypeError):
                row = parse_json(line)
                named = row["file"], row["size"], row["modified_ns"]
                self._known.setdefault(named, set()).update((row.get("changed_ns"), row.get("sha256")))
                self._count += 1
            if line.endswith(b"\n"):
                complete += len(line)
        self._file.truncate(complete)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, arrival: Arrival) -> bool:
        known = self._known.get(arrival.named)
        if known is None:
            return False
        if None in known or arrival.changed_ns in known:
            return True
        if _content(arrival) not in known:
            return False
        known.add(arrival.changed_ns)
        return True

    def __len__(self) -> int:
        return self._count

    def add(self, arrival: Arrival, row: dict[str, Any]) -> str:
        """Append an answer, and return its line."""
        content = _content(arrival)
        line = json.dumps({
            **row, "size": arrival.size, "modified_ns": arrival.modified_ns, "changed_ns": arrival.changed_ns,
            "sha256": content,
        })  # fmt: skip
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        except OSError as err:  # without the journal, a restart would classify everything again
            raise click.ClickException(f"the journal {self.path}: {err.strerror or err}") from err
        self._known.setdefault(arrival.named, set()).update((arrival.changed_ns, content))
        self._count += 1
        return line


def _content(arrival: Arrival) -> str:
    """SHA-256 of a file, empty if it is not the one any more that arrived."""
    try:
        digest = sha256(Path(arrival.file))
        return digest if Arrival.of(arrival.file, Path(arrival.file).stat()) == arrival else ""
    except OSError:
        return ""


class Waiting:
    """Files that the operating system did not give: no permission, busy, a stale handle, not read in time.

    Each is tried again after a pause that doubles. They are written beside the journal, for `--status`.
    """

    def __init__(self, journal: Path) -> None:
        self._path = _waiting_beside(journal)
        self._tries: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._reasons: dict[str, str] = {}
        self._written: str | None = None

    def add(self, file: str, reason: str) -> None:
        """Let a file wait once more, twice as long as before."""
        self._tries[file] = tries = self._tries.get(file, 0) + 1
        self._until[file] = time.monotonic() + min(_LONGEST_FILE_PAUSE, _FILE_PAUSE * 2.0 ** (tries - 1))
        self._reasons[file] = reason

    def pauses(self, file: str) -> bool:
        """Tell if it is too early to read the file again."""
        return self._until.get(file, 0.0) > time.monotonic()

    def tried(self, file: str) -> int:
        """Count how often the system did not give the file."""
        return self._tries.get(file, 0)

    def keep(self, files: set[str]) -> None:
        """Forget all others, which have an answer or are gone, and write those that are left."""
        for gone in self._tries.keys() - files:
            del self._tries[gone], self._until[gone], self._reasons[gone]
        rows = [{"file": file, "tries": tries, "error": self._reasons[file]} for file, tries in self._tries.items()]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        if text != self._written:
            with suppress(OSError):  # for people to look at; nothing depends on it
                if text:
                    write_atomically(self._path, text)
                else:
                    self._path.unlink(missing_ok=True)
            self._written = text


def _waiting_beside(journal: Path) -> Path:
    return journal.with_name(f"{journal.name}.waiting")


def _show_status(journal: Path) -> int:
    """Print how many files have an answer and which ones wait; returns the number of these."""
    answered = journal.read_bytes().count(b"\n") if journal.exists() else 0
    path = _waiting_beside(journal)
    rows = [parse_json(line) for line in path.read_text().splitlines()] if path.exists() else []
    click.echo(f"{answered} answered, {len(rows)} waiting")
    for row in rows:
        click.echo(printable(f"{row['file']}: {row['error']}, tried {row['tries']} times"))
    return len(rows)


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
@click.option(
    "--once", is_flag=True, help="End when every file in FOLDER has an answer, or could not be read three times."
)
@click.option(
    "--status",
    is_flag=True,
    help="Print how many files have an answer and which wait because they cannot be read, and end.",
)
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Priority in the server's queue.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images to read or send at the same time.")  # fmt: skip
@partial(server_options, isolate=True)  # files come from whoever may write there, for as long as it runs
def watch(
    client: XrayClient,
    folder: Path,
    recursive: bool,
    journal: Path | None,
    every: float,
    once: bool,
    status: bool,
    priority: Priority | None,
    jobs: int,
) -> None:
    """Classify files as they arrive in FOLDER, each once, until Ctrl-C or SIGTERM; prints a line of JSON for each.

    A file whose content cannot be classified is answered once, with its error. A file that the system does not give is
    tried again, after growing pauses. While the server cannot be used, the files wait and are classified when it is
    back.
    """
    journal = journal or folder / _JOURNAL
    try:
        if status:
            sys.exit(ExitCode.IMAGES_FAILED if _show_status(journal) else ExitCode.OK)
        answers = Journal(journal)
    except OutputRefused as err:
        raise click.UsageError(f"the journal {err}") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        reason = "another watch has it open" if isinstance(err, BlockingIOError) else reason
        raise click.UsageError(f"the journal {journal}: {reason}") from err
    failed = 0
    with answers, signals_interrupt():
        note(f"watching {folder}; {len(answers)} answers in {answers.path}")
        before: set[Arrival] = set()
        waiting = Waiting(answers.path)
        while True:
            now = set(_arrivals(folder, recursive, answers.path, set()))
            new = sorted((a for a in now if a not in answers), key=lambda a: (a.modified_ns, a.file))
            unchanged = [arrival for arrival in new if arrival in before and not waiting.pauses(arrival.file)]
            answered = True
            if unchanged:
                answered, errors = _answer(client, unchanged, answers, waiting, jobs, priority)
                failed += errors
            before = now
            left = [arrival.file for arrival in now if arrival not in answers]
            waiting.keep(set(left))
            if once and answered and all(waiting.tried(file) >= _TRIES for file in left):
                sys.exit(ExitCode.IMAGES_FAILED if failed or left else ExitCode.OK)
            time.sleep(every if answered else max(every, _SERVER_PAUSE))


def _answer(
    client: XrayClient,
    arrivals: list[Arrival],
    journal: Journal,
    waiting: Waiting,
    jobs: int,
    priority: Priority | None,
) -> tuple[bool, int]:
    """Classify these files.

    Returns:
        False if some must be sent again because of the server; the number of files that cannot be classified.
    """
    try:
        _ = client.preprocessing
    except XrayError as err:
        note(f"{err}; {len(arrivals)} files wait")
        return False, 0
    by_file = {arrival.file: arrival for arrival in arrivals}
    again, failed = 0, 0
    with closing(
        client.classify_many(by_file, max_in_flight=jobs, ordered=False, heatmap=False, priority=priority)
    ) as answers:
        for answer in answers:
            if isinstance(answer, Failure) and isinstance(answer.error, ImageUnavailable):
                waiting.add(str(answer.file), answer.error.message)
                note(f"{answer}; it will be read again")
            elif isinstance(answer, Failure) and not isinstance(answer.error, ImageError | RequestRejected):
                again += 1
                note(f"{answer}; it will be sent again")
                if isinstance(answer.error, ServerUnreachable | ServerNotReady):
                    return False, failed
            else:
                failed += isinstance(answer, Failure)
                click.echo(journal.add(by_file[str(answer.file)], answer.to_dict()))
    return again == 0, failed


def _arrivals(folder: Path, recursive: bool, journal: Path, seen: set[tuple[int, int]]) -> Iterator[Arrival]:
    """Yield the image files of a folder, a file with two names once."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as err:  # perhaps a network drive that comes back
        note(f"{folder}: {err.strerror or err}")
        return
    for path in paths:
        with suppress(OSError):  # deleted since it was listed
            if path.is_dir():
                if recursive and not path.is_symlink() and not path.name.startswith("."):
                    yield from _arrivals(path, recursive, journal, seen)
            elif path.is_file() and path != journal and is_image_file(path):
                status = path.stat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield Arrival.of(str(path), status)
