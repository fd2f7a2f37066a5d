"""The command line: `xray-client classify`, `health` and `info`, over the public API."""

from __future__ import annotations

import functools
import glob
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
from PIL import Image

from ._client import DEFAULT_TIMEOUT, DEFAULT_URL, XrayClient
from ._dicom import is_dicom
from ._errors import DeadlineExceeded, ImageError, ServerUnreachable, XrayError
from ._output import WRITERS, printable
from ._overlay import write_overlay
from ._results import Failure, Prediction
from .contract import FINDINGS, MODEL_NAME, RESEARCH_USE

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
_OVERLAY = ".overlay.png"
# After so many files in a row without an answer, the server is gone: the rest is reported and not tried.
_GIVE_UP_AFTER = 20

ANSWERED, IMAGES_FAILED, SERVER_TROUBLE, INTERRUPTED = 0, 1, 3, 130
_EXIT_CODES = """\b
Exit codes:
  0    every image was answered
  1    some images failed: the rest was answered
  2    the command line was not understood
  3    the server could not be used, or failed for some images
  130  interrupted
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}, epilog=_EXIT_CODES)
@click.version_option(package_name="medclip-triton", prog_name="xray-client")
def main() -> None:
    """Classify chest radiographs on a Triton server: Normal, Pneumonia or Uncertain.

    Research use only. Not a medical device.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold what no encoding can write
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"pydicom\.")  # they quote what the file says, of the patient too


def _with_client(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of the server, open the client, and turn errors into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(url: str, model: str, model_version: str, timeout: float, **options: Any) -> None:
        try:
            client = XrayClient(url, model=model, model_version=model_version, timeout=timeout)
        except ValueError as err:
            raise click.UsageError(str(err)) from err
        try:
            with client:
                command(client, **options)
        except XrayError as err:
            _say(f"xray-client: {err}")
            sys.exit(SERVER_TROUBLE)
        except KeyboardInterrupt:
            _say("xray-client: interrupted")
            sys.exit(INTERRUPTED)

    for option in (
        click.option("--timeout", type=click.FloatRange(0, 86_400, min_open=True), default=DEFAULT_TIMEOUT,
                     show_default=True, help="Seconds that one image may take, reading it included."),
        click.option("--model-version", default="", help="Version to ask for; the server chooses where none is given."),
        click.option("--model", default=MODEL_NAME, show_default=True, help="Name of the served model."),
        click.option("--url", envvar="XRAY_URL", default=DEFAULT_URL, show_default=True, show_envvar=True,
                     help="host:port of Triton's gRPC service."),
    ):  # fmt: skip
        wrapped = option(wrapped)
    return wrapped


@main.command(epilog=_EXIT_CODES)
@click.argument("paths", nargs=-1, required=True)
@click.option("--format", "form", type=click.Choice(list(WRITERS)), default="table", show_default=True,
              help="How the answers are written; all but the table are streams for programs.")  # fmt: skip
@click.option("--heatmap-dir", type=click.Path(file_okay=False, path_type=Path),
              help="Write a picture of the evidence for each image here, as NAME.overlay.png.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 256), default=8, show_default=True,
              help="Images being read or sent at a time.")  # fmt: skip
@_with_client
def classify(client: XrayClient, paths: tuple[str, ...], form: str, heatmap_dir: Path | None, jobs: int) -> None:
    """Classify images: files, patterns such as '*.png', or folders (the images in them, without subfolders).

    PNG, JPEG, TIFF, BMP and DICOM, grey. One answer for each file, in their order.

    \b
    The keys of json, jsonl and csv:
      file, finding, probability (of Pneumonia), decision, novelty (above 1: unlike the
      training radiographs), model, version, milliseconds, error
    """
    files = _expand(paths)
    overlays = _Overlays(heatmap_dir, files) if heatmap_dir else None
    _ = client.preprocessing  # one question before the first of perhaps 10,000 files: does anybody answer?
    counts: Counter[str] = Counter()
    with (
        WRITERS[form](sys.stdout) as writer,
        _progress(form, len(files)) as advance,
        closing(_answers(client, files, jobs, heatmap=overlays is not None)) as answers,
        warnings.catch_warnings(),
    ):
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
            advance()
    click.echo(_summary(len(files), counts), err=form != "table")
    if counts["server"]:
        sys.exit(SERVER_TROUBLE)
    sys.exit(IMAGES_FAILED if counts["image"] or counts["overlay"] else ANSWERED)


@main.command()
@_with_client
def health(client: XrayClient) -> None:
    """Say whether the server would classify an image now; exit code 0 where it would, else 3."""
    client.check()
    click.echo(f"ready: {client.model} at {client.url}")


@main.command()
@_with_client
def info(client: XrayClient) -> None:
    """Show the served model: versions, preprocessing and tensors."""
    told = client.info()
    lines = [
        ("model", told.model),
        ("versions", ", ".join(told.versions)),
        ("platform", told.platform),
        ("server", told.server),
        ("preprocessing", told.preprocessing.to_json()),
        *(("input", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in told.inputs),
        *(("output", f"{tensor.name} {tensor.datatype} {list(tensor.shape)}") for tensor in told.outputs),
    ]
    for name, value in lines:
        click.echo(f"{name:<15}{printable(value)}")


def _answers(
    client: XrayClient, files: list[str], jobs: int, *, heatmap: bool
) -> Generator[Prediction | Failure, None, None]:
    """One answer for each file; where the server is lost on the way, the rest is answered without being tried."""
    left = iter(files)
    lost = 0

    def while_there_is_a_server() -> Iterator[str]:
        while lost < _GIVE_UP_AFTER and (file := next(left, None)) is not None:
            yield file

    with closing(client.classify_many(while_there_is_a_server(), max_in_flight=jobs, heatmap=heatmap)) as answers:
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
            self._taken = {self._key(Path(file).resolve()) for file in files if file.endswith(_OVERLAY)}
        except OSError as err:
            raise click.UsageError(f"--heatmap-dir {folder}: {err.strerror or err}") from err
        self._seen: Counter[str] = Counter()

    def write(self, prediction: Prediction) -> bool:
        """Write one; where that fails, say so and return False."""
        file = prediction.file or "image"
        try:
            write_overlay(self._path(Path(file).stem), file, prediction)
        except (OSError, ImageError) as err:
            _say(f"xray-client: no overlay of {file}: {err}")
            return False
        return True

    def _path(self, stem: str) -> Path:
        while True:
            number = self._seen[stem.casefold()] = self._seen[stem.casefold()] + 1
            path = self._folder / (f"{stem}{_OVERLAY}" if number == 1 else f"{stem}.{number}{_OVERLAY}")
            if self._key(path) not in self._taken:
                self._taken.add(self._key(path))
                return path

    @staticmethod
    def _key(path: Path) -> str:
        return str(path).casefold()  # some file systems take a.png and A.png for one


def _expand(paths: tuple[str, ...]) -> list[str]:
    """Files as named; patterns that no shell has expanded; folders as the images in them."""
    files: list[str] = []
    for path in paths:
        is_pattern = any(character in path for character in "*?[") and not _asks(Path(path).exists)
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True)) if is_pattern else []  # noqa: PTH207
        for match in matches or [path]:
            files += _images_in(Path(match)) if _asks(Path(match).is_dir) else [match]
    if not files:
        raise click.UsageError(f"no images ({', '.join(_SUFFIXES)}) in {', '.join(paths)}")
    return files


def _asks(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # no permission to look: the reader will say so
        return False


def _images_in(folder: Path) -> list[str]:
    try:
        names = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except OSError as err:
        raise click.UsageError(f"{folder}: {err.strerror or err}") from err
    images = [path for path in names if _is_image(path)]
    if len(images) < len(names):
        _say(f"xray-client: {folder}: {len(names) - len(images)} other files left out")
    return [str(path) for path in images]


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in _SUFFIXES:
        return not path.name.endswith(_OVERLAY)
    # Archives write DICOM under names such as IM0001 or 1.2.840.113: only the content tells. A pipe is not waited for.
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    return _asks(lambda: path.is_file() and _starts_like_dicom(path))


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))


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


def _say(text: str) -> None:
    click.echo(printable(text), err=True)
