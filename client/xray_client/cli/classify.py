"""`xray-client classify`: classify files, folders and lists of paths."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import click
from PIL import Image

from xray_client import (
    FINDINGS,
    RESEARCH_USE,
    DeadlineExceeded,
    Failure,
    ImageError,
    OutputRefused,
    Prediction,
    Priority,
    ServerUnreachable,
    XrayClient,
    write_overlay,
)
from xray_client._config import PRIORITIES
from xray_client.files import check_output
from xray_client.image_files import OVERLAY_SUFFIX

from .html_report import REPORT_MARK, HtmlReport
from .options import EXIT_CODES, ExitCode, note, server_options
from .paths import expand
from .writers import WRITERS

# Consecutive failures to reach the server after which the remaining files are reported as failed without being sent.
GIVE_UP_AFTER = 20


@click.command(epilog=EXIT_CODES, short_help="Classify files, folders or a list of paths.")
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Descend into folders in folders.")
@click.option("--format", "form", type=click.Choice(list(WRITERS)), default="table", show_default=True,
              help="Output format; json, jsonl and csv are for programs.")  # fmt: skip
@click.option("--csv-safe", is_flag=True,
              help="In csv, put ' before names that a spreadsheet would take for formulas.")  # fmt: skip
@click.option("--heatmap-dir", type=click.Path(file_okay=False, path_type=Path),
              help="Folder to write an overlay of the evidence into for each image, NAME.overlay.png.")  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path),
              help="HTML file to write with all answers and overlays, for any browser.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1),
              help="Mark images with at least this probability of Pneumonia; findings do not change.")  # fmt: skip
@click.option("--as-completed", is_flag=True, help="Print each answer when it arrives, not in the order of the images.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Priority in the server's queue.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images to read or send at the same time.")  # fmt: skip
@server_options
def classify(
    client: XrayClient,
    paths: tuple[str, ...],
    recursive: bool,
    form: str,
    csv_safe: bool,
    heatmap_dir: Path | None,
    report: Path | None,
    threshold: float | None,
    as_completed: bool,
    priority: Priority | None,
    jobs: int,
) -> None:
    """Classify the radiographs in PATHS: files, patterns such as '*.png', folders, or - for a list of files on stdin.

    Reads grey PNG, JPEG, TIFF, BMP and DICOM. Every file gets one answer; a file that fails does not stop the others.

    \b
    Keys of json, jsonl and csv:
      file, finding, probability (of Pneumonia), decision, novelty (above 1: unlike the
      training radiographs), model, version, milliseconds, error
      and, with --threshold, above_threshold
    """
    if getattr(sys.stdout, "name", "") == os.devnull:  # opened on nothing because it was closed
        raise click.UsageError("standard output is closed, so the answers would be lost")
    if csv_safe and form != "csv":
        raise click.UsageError("--csv-safe needs --format csv")
    files = expand(paths, recursive=recursive)
    overlays = _Overlays(heatmap_dir, files) if heatmap_dir else None
    _ = client.preprocessing  # fails now, before the first of perhaps 10,000 files, if the server cannot be used
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        options = {"safe": True} if csv_safe else {}
        writer = stack.enter_context(WRITERS[form](sys.stdout, threshold=threshold, **options))
        page = _open_report(stack, report, files) if report else None
        advance = stack.enter_context(_progress(form, len(files)))
        pictures = overlays is not None or page is not None
        answers = stack.enter_context(
            closing(_answers(client, files, jobs, ordered=not as_completed, heatmap=pictures, priority=priority))
        )
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the reader has its own limit
        for answer in answers:
            if isinstance(answer, Failure):
                counts["image" if isinstance(answer.error, ImageError) else "server"] += 1
            else:
                counts[answer.finding] += 1
                counts["novel"] += answer.novel
                if overlays is not None and not overlays.write(answer):
                    counts["overlay"] += 1
            writer.write(answer)
            if page is not None:
                page.write(answer)
            advance()
    if page is not None and page.failed:
        note(f"no report: {report}: {page.failed}")
        counts["overlay"] += 1
    click.echo(_summary(len(files), counts), err=form != "table")
    if counts["server"]:
        sys.exit(ExitCode.SERVER_FAILED)
    sys.exit(ExitCode.IMAGES_FAILED if counts["image"] or counts["overlay"] else ExitCode.OK)


def _answers(
    client: XrayClient, files: list[str], jobs: int, *, ordered: bool, heatmap: bool, priority: Priority | None
) -> Generator[Prediction | Failure, None, None]:
    """Yield one answer per file; once the server stops answering, the remaining files fail without being sent."""
    remaining = iter(files)
    failures_in_a_row = 0

    def files_to_send() -> Iterator[str]:
        while failures_in_a_row < GIVE_UP_AFTER and (file := next(remaining, None)) is not None:
            yield file

    classified = client.classify_many(
        files_to_send(), max_in_flight=jobs, ordered=ordered, heatmap=heatmap, priority=priority
    )
    with closing(classified) as answers:
        for answer in answers:
            no_answer = isinstance(answer, Failure) and isinstance(answer.error, ServerUnreachable | DeadlineExceeded)
            failures_in_a_row = failures_in_a_row + 1 if no_answer else 0
            yield answer
    for file in remaining:
        error = ServerUnreachable("not sent: the server stopped answering", remedy="run it again", source=client.url)
        yield Failure(file, error, client.model, 0.0)


class _Overlays:
    """Writer of overlays into one folder: never two of the same name, and never over an image of this run."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = folder.resolve()
            self._taken = {self._key(Path(file).resolve()) for file in files if file.endswith(OVERLAY_SUFFIX)}
        except OSError as err:
            raise click.UsageError(f"--heatmap-dir {folder}: {err.strerror or err}") from err
        self._seen: Counter[str] = Counter()
        self._inputs = [file for file in files if file.endswith(OVERLAY_SUFFIX)]  # others have other names

    def write(self, prediction: Prediction) -> bool:
        """Write one overlay; on failure, print the reason and return False."""
        file = prediction.file or "image"
        try:
            path = self._path(Path(file).stem)
            check_output(path, inputs=self._inputs, ours=lambda head: head.startswith(b"\x89PNG"))
            write_overlay(path, file, prediction)
        except (OSError, ImageError, OutputRefused) as err:
            note(f"no overlay of {file}: {err}")
            return False
        return True

    def _path(self, stem: str) -> Path:
        while True:
            number = self._seen[stem.casefold()] = self._seen[stem.casefold()] + 1
            path = self._folder / (f"{stem}{OVERLAY_SUFFIX}" if number == 1 else f"{stem}.{number}{OVERLAY_SUFFIX}")
            if self._key(path) not in self._taken:
                self._taken.add(self._key(path))
                return path

    @staticmethod
    def _key(path: Path) -> str:
        return str(path).casefold()  # on some file systems a.png and A.png are the same file


def _open_report(stack: ExitStack, path: Path, files: list[str]) -> HtmlReport:
    try:
        check_output(path, inputs=files, ours=lambda head: REPORT_MARK in head)
        return stack.enter_context(HtmlReport(path))
    except OutputRefused as err:
        raise click.UsageError(f"--report {err}") from err
    except OSError as err:
        raise click.UsageError(f"--report {path}: {err.strerror or err}") from err


@contextmanager
def _progress(form: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar, unless stderr is no terminal or the answers themselves stream to the terminal."""
    if not sys.stderr.isatty() or (form != "table" and sys.stdout.isatty()):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(
        console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as progress:
        task = progress.add_task("classifying", total=total)
        yield lambda: progress.advance(task)


def _summary(files: int, counts: Counter[str]) -> str:
    parts = [f"{counts[finding]} {finding}" for finding in FINDINGS]
    parts += [f"{counts['image'] + counts['server']} failed"]
    unlike = f" {counts['novel']} unlike the training radiographs." if counts["novel"] else ""
    return f"{files} image{'' if files == 1 else 's'}: {', '.join(parts)}.{unlike} {RESEARCH_USE}"
