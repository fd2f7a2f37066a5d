"""`xray-client classify`."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import click
from PIL import Image

from xray_client._client import XrayClient
from xray_client._config import PRIORITIES, Priority
from xray_client._exceptions import DeadlineExceeded, ImageError, ServerUnreachable
from xray_client._imaging.overlay import write_overlay
from xray_client._models import Failure, Prediction
from xray_client.contract import FINDINGS, RESEARCH_USE

from .html_report import Report
from .options import ANSWERED, EXIT_CODES, IMAGES_FAILED, SERVER_TROUBLE, say, server_options
from .paths import OVERLAY, expand
from .writers import WRITERS

# After so many files in a row without an answer, the server is gone: the rest is reported and not tried.
GIVE_UP_AFTER = 20


@click.command(epilog=EXIT_CODES, short_help="Classify images, folders or a list of paths.")
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="The folders in folders as well.")
@click.option("--format", "form", type=click.Choice(list(WRITERS)), default="table", show_default=True,
              help="How the answers are written; all but the table are streams for programs.")  # fmt: skip
@click.option("--heatmap-dir", type=click.Path(file_okay=False, path_type=Path),
              help="Write a picture of the evidence for each image here, as NAME.overlay.png.")  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path),
              help="Write a page with all answers and pictures here, to be opened in any browser.")  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1),
              help="Show as well which images reach this probability. The finding stays the model's own.")  # fmt: skip
@click.option("--as-completed", is_flag=True, help="Each answer as soon as it is there, and not in the images' order.")
@click.option("--priority", type=click.Choice(list(PRIORITIES)), help="Before others in the server's queue, or not.")
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images being read or sent at a time.")  # fmt: skip
@server_options
def classify(
    client: XrayClient,
    paths: tuple[str, ...],
    recursive: bool,
    form: str,
    heatmap_dir: Path | None,
    report: Path | None,
    threshold: float | None,
    as_completed: bool,
    priority: Priority | None,
    jobs: int,
) -> None:
    """Classify images: files, patterns such as '*.png', folders (-r: with those in them), or - for a list on stdin.

    PNG, JPEG, TIFF, BMP and DICOM, grey. One answer for each file, in their order unless --as-completed.

    \b
    The keys of json, jsonl and csv:
      file, finding, probability (of Pneumonia), decision, novelty (above 1: unlike the
      training radiographs), model, version, milliseconds, error
      and, with --threshold, above_threshold
    """
    files = expand(paths, recursive=recursive)
    overlays = _Overlays(heatmap_dir, files) if heatmap_dir else None
    _ = client.preprocessing  # one question before the first of perhaps 10,000 files: does anybody answer?
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writer = stack.enter_context(WRITERS[form](sys.stdout, threshold=threshold))
        page = stack.enter_context(_open_report(report)) if report else None
        advance = stack.enter_context(_progress(form, len(files)))
        pictures = overlays is not None or page is not None
        answers = stack.enter_context(
            closing(_answers(client, files, jobs, ordered=not as_completed, heatmap=pictures, priority=priority))
        )
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the reader refuses such files by itself
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
        say(f"xray-client: no report: {report}: {page.failed}")
        counts["overlay"] += 1
    click.echo(_summary(len(files), counts), err=form != "table")
    if counts["server"]:
        sys.exit(SERVER_TROUBLE)
    sys.exit(IMAGES_FAILED if counts["image"] or counts["overlay"] else ANSWERED)


def _answers(
    client: XrayClient, files: list[str], jobs: int, *, ordered: bool, heatmap: bool, priority: Priority | None
) -> Generator[Prediction | Failure, None, None]:
    """One answer for each file; where the server is lost on the way, the rest is answered without being tried."""
    left = iter(files)
    lost = 0

    def while_there_is_a_server() -> Iterator[str]:
        while lost < GIVE_UP_AFTER and (file := next(left, None)) is not None:
            yield file

    asked = client.classify_many(
        while_there_is_a_server(), max_in_flight=jobs, ordered=ordered, heatmap=heatmap, priority=priority
    )
    with closing(asked) as answers:
        for answer in answers:
            gone = isinstance(answer, Failure) and isinstance(answer.error, ServerUnreachable | DeadlineExceeded)
            lost = lost + 1 if gone else 0
            yield answer
    for file in left:
        error = ServerUnreachable("not tried: the server stopped answering", remedy="run it again", source=client.url)
        yield Failure(file, error, client.model, 0.0)


class _Overlays:
    """Writes the overlays into one folder, never two to the same name and never over an image of this run."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder = folder.resolve()
            self._taken = {self._key(Path(file).resolve()) for file in files if file.endswith(OVERLAY)}
        except OSError as err:
            raise click.UsageError(f"--heatmap-dir {folder}: {err.strerror or err}") from err
        self._seen: Counter[str] = Counter()

    def write(self, prediction: Prediction) -> bool:
        """Write one; where that fails, say so and return False."""
        file = prediction.file or "image"
        try:
            write_overlay(self._path(Path(file).stem), file, prediction)
        except (OSError, ImageError) as err:
            say(f"xray-client: no overlay of {file}: {err}")
            return False
        return True

    def _path(self, stem: str) -> Path:
        while True:
            number = self._seen[stem.casefold()] = self._seen[stem.casefold()] + 1
            path = self._folder / (f"{stem}{OVERLAY}" if number == 1 else f"{stem}.{number}{OVERLAY}")
            if self._key(path) not in self._taken:
                self._taken.add(self._key(path))
                return path

    @staticmethod
    def _key(path: Path) -> str:
        return str(path).casefold()  # some file systems take a.png and A.png for one


def _open_report(path: Path) -> Report:
    try:
        return Report(path)
    except OSError as err:
        raise click.UsageError(f"--report {path}: {err.strerror or err}") from err


@contextmanager
def _progress(form: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal, unless the answers run over that terminal themselves."""
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
