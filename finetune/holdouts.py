"""Splits that hold out a style of radiograph, to see how a model does on what it was not trained on.

    python -m finetune.holdouts --data chest_xray --out runs/shifts
    python -m finetune.run --data chest_xray --splits runs/shifts/series-and-cause.csv --no-publish

A validation part drawn by patient looks like the training part, so it cannot show how much is lost on the next
hospital's radiographs. What comes nearest within one set is to hold out a style: a series of Normal radiographs, a
cause of pneumonia, or the shapes of image that go against what shape tells about the class. A held-out style becomes
the test part of a `splits.csv`; with `--part validation`, `finetune.tune --splits` chooses settings by it.

Styles are read from file names of the Kaggle set and from the sizes of the files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from finetune.data.records import Record, Splits, split_by_patient
from finetune.data.splits import save_splits
from xray_client import LABELS
from xray_client.console import console, plain_errors

from .errors import DataError
from .settings import DataSettings

NORMAL, PNEUMONIA = range(len(LABELS))

_FOLDER = click.Path(path_type=Path)


def _series(records: Sequence[Record]) -> np.ndarray:
    """Normal radiographs of the series NORMAL2-IM-."""
    return np.array([record.label == NORMAL and record.path.name.startswith("NORMAL2-") for record in records])


def _cause(records: Sequence[Record]) -> np.ndarray:
    """Pneumonias by viruses."""
    return np.array([record.label == PNEUMONIA and "_virus_" in record.path.name for record in records])


def _both(records: Sequence[Record]) -> np.ndarray:
    """Normal radiographs of the series NORMAL2-IM- and pneumonias by viruses."""
    return _series(records) | _cause(records)


def _against_shape(records: Sequence[Record]) -> np.ndarray:
    """The half of each class whose width to height is most like the other class's."""
    ratio = np.empty(len(records))
    for i, record in enumerate(records):
        with Image.open(record.path) as image:
            ratio[i] = image.width / image.height
    labels = np.array([record.label for record in records])
    middles = [float(np.median(ratio[labels == label])) for label in (NORMAL, PNEUMONIA)]
    if middles[0] == middles[1]:
        raise DataError("both classes have images of the same shape", remedy="name a set that keeps its aspect ratios")
    wider = int(np.argmax(middles))
    return np.where(labels == wider, ratio < middles[wider], ratio > middles[1 - wider])


SHIFTS: dict[str, Callable[[Sequence[Record]], np.ndarray]] = {
    "series": _series,
    "cause": _cause,
    "series-and-cause": _both,
    "against-shape": _against_shape,
}


def hold_out(
    records: Sequence[Record], style: np.ndarray, *, part: str, val_fraction: float, seed: int, limit: int | None = None
) -> Splits:
    """Put the radiographs of a style, and a drawn share of the other patients, where they cannot be trained on.

    A class that the style does not hold is held out by patient instead, as large a share of it as of the other class,
    so that the held-out part has both. Patients with radiographs on both sides are left out of training.

    Args:
        records: What to split.
        style: bool (n,), of the style.
        part: "test" (validation is drawn from the rest by patient) or "validation" (there is no test part).
        val_fraction: Share of the remaining patients to validate on, if `part` is "test".
        seed: Of what is drawn.
        limit: At most so many radiographs in the held-out part, drawn at random; None = all.

    Raises:
        DataError: The style holds no radiographs, or too few remain.
    """
    labels = np.array([record.label for record in records])
    patients = np.array([record.patient for record in records])
    held = style.copy()
    share = max(float(style[labels == label].mean()) for label in (NORMAL, PNEUMONIA))
    if share == 0:
        raise DataError("no radiograph has this style", remedy="see --help for where styles are read from")
    random = np.random.default_rng(seed)
    for label in (NORMAL, PNEUMONIA):
        if not style[labels == label].any():
            everyone = np.unique(patients[labels == label])
            drawn = random.choice(everyone, max(1, round(share * len(everyone))), replace=False)
            held |= (labels == label) & np.isin(patients, drawn)
    rest = np.flatnonzero(~held & ~np.isin(patients, patients[held]))
    held_out = np.flatnonzero(held)
    if limit and len(held_out) > limit:
        held_out = np.sort(random.choice(held_out, limit, replace=False))
    if part == "validation":
        return Splits(rest, held_out, np.array([], dtype=int), ())
    drawn_splits = split_by_patient([records[i] for i in rest], val_fraction=val_fraction, seed=seed)
    return Splits(rest[drawn_splits.train], rest[drawn_splits.val], held_out, ())


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--data", type=_FOLDER, required=True, help="Folder in the Kaggle layout, as for finetune.run.")
@click.option("--shift", type=click.Choice(["all", *SHIFTS]), default="all", help="Which style to hold out.")
@click.option(
    "--part",
    type=click.Choice(["test", "validation"]),
    default="test",
    help="What the held-out style becomes: test to measure by, validation to choose settings by.",
)
@click.option("--out", type=_FOLDER, default=Path("runs/shifts"), help="Folder for the splits.")
@click.option("--cache", type=_FOLDER, default=None, help="Where decoded images are kept.  [default: OUT/../cache]")
@click.option("--val-fraction", type=click.FloatRange(0.02, 0.5), default=0.15, help="Of the patients not held out.")
@click.option(
    "--limit", type=click.IntRange(10), default=None, help="At most so many held-out radiographs.  [default: all]"
)
@click.option("--seed", type=int, default=0, help="Of what is drawn.")
def main(
    data: Path, shift: str, part: str, out: Path, cache: Path | None, val_fraction: float, limit: int | None, seed: int
) -> None:
    """Command line; see the module's text."""
    from finetune.data.datamodule import gather

    with plain_errors():
        material = gather(DataSettings(data, cache or out.parent / "cache", seed=seed))
        records = material.cache.records
        out.mkdir(parents=True, exist_ok=True)
        for name in SHIFTS if shift == "all" else [shift]:
            try:
                style = SHIFTS[name](records)
                splits = hold_out(records, style, part=part, val_fraction=val_fraction, seed=seed, limit=limit)
            except DataError as err:
                if shift != "all":
                    raise
                console.print(f"{name}: {err}", style="yellow")
                continue
            path = out / f"{name}.csv"
            save_splits(path, records, splits, material.source.root)
            sizes = ", ".join(f"{len(getattr(splits, p))} {p}" for p in ("train", "val", "test"))
            console.print(f"{path}: {sizes}")


if __name__ == "__main__":
    main()
