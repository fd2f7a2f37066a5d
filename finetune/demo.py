"""The whole way in one command: data, training, export, a real Triton, classification. Each step is a public command.

    python -m finetune.demo                                  # on phantoms, drawn here
    python -m finetune.demo --data chest_xray                # on a folder of radiographs

First the reference model answers, which needs no training; then a model is trained, and answers beside it.
Everything is made below `runs/`. A model trained on your radiographs becomes the next version in `model_repository/`;
one trained on phantoms is of no use to anybody and gets a repository of its own in `runs/`.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from finetune.data.records import TEST, VAL
from finetune.data.sources import find_radiographs
from xray_client import LABELS, RESEARCH_USE, XrayError, read_radiograph
from xray_client.console import plain_errors

from .run_folder import CHECKPOINT_FOLDER, LATEST, METRICS_FILE, SPLITS_FILE

HELD_OUT_PER_CLASS = 6
_PHANTOM_OPTIONS = ("--epochs", "4", "--patience", "2")


class DemoError(XrayError):
    """A step of the demonstration failed; its own words are above."""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=None,
    help="Radiographs, as for finetune.run.  [default: phantoms]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), help="Folder for everything that the demo makes."
)
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
def main(data: Path | None, out: Path, repository: Path) -> None:
    """Run the command line."""
    started = time.monotonic()
    with plain_errors():
        options: Sequence[str] = ()
        reference, phantoms = repository, data is None
        if data is None:
            repository = out / "model_repository"
            data, options = out / "phantoms" / "chest_xray", _PHANTOM_OPTIONS
            _heading("1. Draw phantom radiographs")
            _command([sys.executable, "-m", "finetune.phantom", "--out", data])
        else:
            _heading(f"1. Radiographs in {data}")
        _heading("2. The reference model, trained on real radiographs, answers at once")
        if phantoms:
            click.echo("(Phantoms are drawings: expect it to say that they are unlike the radiographs that it knows.)")
        _command(
            [sys.executable, "-m", "finetune.export", "reference", "--unless-published", "--repository", reference]
        )
        shown = _some(data)
        with _server(reference) as url:
            _command([_script("xray-client"), "classify", "--url", url, *shown])
        _heading("3. Fine-tune")
        _command([sys.executable, "-m", "finetune.run", "--data", data, "--out", out, "--no-publish", *options])
        run = _short((out / LATEST).resolve())
        _heading("4. Export to ONNX, compare, publish")
        _command([sys.executable, "-m", "finetune.export", run, "--repository", repository])
        images, truth, split = _held_out(run, data)
        _heading("5. Serve with Triton")
        with _server(repository) as url:
            _heading(f"6. Classify {len(images)} radiographs of the {split} split")
            classify = [_script("xray-client"), "classify", "--url", url]
            overlays = run / "overlays"
            _command([*classify, "--heatmap-dir", overlays, *images])
            answers = _answers([*classify, "--format", "jsonl", *images])
        _summary(run, repository, images[0], overlays, _score(answers, truth), time.monotonic() - started)


def _heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _show(command: Sequence[str | Path]) -> list[str]:
    """Print a command as a person would type it."""
    words = [str(word) for word in command]
    typed = ["python" if word == sys.executable else word for word in words]
    typed[0] = Path(typed[0]).name
    if len(typed) > 12:
        typed = [*typed[:10], f"... ({len(typed) - 10} more)"]
    click.secho(f"$ {shlex.join(typed)}", fg="cyan")
    return words


def _command(command: Sequence[str | Path]) -> None:
    code = subprocess.run(_show(command), check=False).returncode
    if code:
        raise DemoError(f"step ended with exit code {code}", remedy="its own words are above")


def _script(name: str) -> str:
    """A console script of this environment, whatever is on the PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or name


def _some(data: Path) -> list[Path]:
    """A few radiographs of each label."""
    radiographs = find_radiographs(data).radiographs
    some: list[Path] = []
    for label in range(len(LABELS)):
        paths = [radiograph.path for radiograph in radiographs if radiograph.label == label]
        some += paths[:: max(1, len(paths) // HELD_OUT_PER_CLASS)][:HELD_OUT_PER_CLASS]
    return some


def _held_out(run: Path, data: Path) -> tuple[list[Path], dict[str, str], str]:
    """Radiographs that training never saw, as PNG copies; the same number of each label, from the test split if any."""
    with (run / SPLITS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    split = TEST if any(row["split"] == TEST for row in rows) else VAL
    root = find_radiographs(data).root
    folder = run / "images"
    folder.mkdir(exist_ok=True)
    truth: dict[str, str] = {}
    images: list[Path] = []
    for label in ("Normal", "Pneumonia"):
        of_label = [row for row in rows if row["split"] == split and row["label"] == label]
        step = max(1, len(of_label) // HELD_OUT_PER_CLASS)
        for row in of_label[::step][:HELD_OUT_PER_CLASS]:
            source = root / row["file"]
            image = folder / f"{label.lower()}-{source.stem}.png"
            read_radiograph(source).save(image)
            truth[str(image)] = label
            images.append(image)
    return images, truth, split


@contextmanager
def _server(repository: Path) -> Iterator[str]:
    """Run `xray-server` for a while; yields its address."""
    words = _show([_script("xray-server"), "--repository", repository])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = None
        while url is None:
            line = process.stdout.readline()
            if not line:
                raise DemoError("the server did not start", remedy="its own words are above")
            click.echo(line.rstrip())
            if found := re.search(r"READY.*?(127\.0\.0\.1:\d+)", line):
                url = found.group(1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(command: Sequence[str | Path]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def _score(answers: Sequence[dict[str, Any]], truth: dict[str, str]) -> str:
    right = sum(answer["finding"] == truth[answer["file"]] for answer in answers)
    unsure = sum(answer["finding"] == "Uncertain" for answer in answers)
    return f"{right} of {len(answers)} right, {unsure} uncertain, {len(answers) - right - unsure} wrong"


def _short(path: Path) -> Path:
    """Relative to the working directory where it lies below, as a person would type it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _summary(run: Path, repository: Path, image: Path, overlays: Path, score: str, seconds: float) -> None:
    pictures = ", ".join(path.name for path in sorted(run.glob("*.png")))
    _heading("Done")
    click.echo(f"{score} on held-out radiographs, in {seconds / 60:.1f} minutes")
    click.echo(f"  figures with intervals  {_short(run / METRICS_FILE)}")
    click.echo(f"  pictures                {_short(run)}/{{{pictures}}}")
    click.echo(f"  heatmap overlays        {_short(overlays)}/")
    click.echo(f"  checkpoint              {_short(run / CHECKPOINT_FOLDER)}/")
    click.echo(f"  served model            {_short(repository)}/medclip/")
    click.echo("Try next, with .venv/bin on your PATH:")
    click.echo(f"  xray-server --repository {_short(repository)}")
    click.echo(f"  xray-client classify --format jsonl {_short(image)}")
    click.echo("  python -m finetune.run --help")
    click.echo(RESEARCH_USE)


if __name__ == "__main__":
    main()
