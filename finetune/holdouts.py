"""Splits that hold out a subgroup of radiographs, to estimate performance under a distribution shift.

    python -m finetune.holdouts --data chest_xray --out runs/holdouts
    python -m finetune.run --data chest_xray --splits runs/holdouts/series-and-cause.csv --no-publish

A validation split drawn by patient has the distribution of the training split, so it cannot show the loss on another
hospital's radiographs. The closest substitute within one set is to hold out a subgroup: a series of Normal radiographs,
a cause of pneumonia, or the images whose shape contradicts what shape says about the class. The subgroup becomes the
test split of a `splits.csv`; with `--split val`, `finetune.tune --splits` chooses settings by it.

Subgroups are recognised by file names of the Kaggle set and by image sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from finetune.data.records import SPLIT_NAMES, TEST, VAL, Radiograph, Splits, split_by_patient
from finetune.data.splits import save_splits
from xray_client import LABELS
from xray_client.console import console, plain_errors

from .command_line import setting
from .errors import DataError
from .settings import DataSettings

NORMAL, PNEUMONIA = range(len(LABELS))

_FOLDER = click.Path(path_type=Path)


def _series(radiographs: Sequence[Radiograph]) -> NDArray[np.bool_]:
    """Select the Normal radiographs of the series NORMAL2-IM-."""
    return np.array([r.label == NORMAL and r.path.name.startswith("NORMAL2-") for r in radiographs])


def _cause(radiographs: Sequence[Radiograph]) -> NDArray[np.bool_]:
    """Select the viral pneumonias."""
    return np.array([r.label == PNEUMONIA and "_virus_" in r.path.name for r in radiographs])


def _both(radiographs: Sequence[Radiograph]) -> NDArray[np.bool_]:
    """Select the Normal radiographs of the series NORMAL2-IM- and the viral pneumonias."""
    return _series(radiographs) | _cause(radiographs)


def _against_shape(radiographs: Sequence[Radiograph]) -> NDArray[np.bool_]:
    """Select the half of each class whose aspect ratio is most like the other class's."""
    ratio = np.empty(len(radiographs))
    for i, radiograph in enumerate(radiographs):
        with Image.open(radiograph.path) as image:
            ratio[i] = image.width / image.height
    labels = np.array([radiograph.label for radiograph in radiographs])
    medians = [float(np.median(ratio[labels == label])) for label in (NORMAL, PNEUMONIA)]
    if medians[0] == medians[1]:
        raise DataError("both classes have images of the same shape", remedy="name a set that keeps its aspect ratios")
    wider = int(np.argmax(medians))
    return np.where(labels == wider, ratio < medians[wider], ratio > medians[1 - wider])


SUBGROUPS: dict[str, Callable[[Sequence[Radiograph]], NDArray[np.bool_]]] = {
    "series": _series,
    "cause": _cause,
    "series-and-cause": _both,
    "against-shape": _against_shape,
}


def hold_out(
    radiographs: Sequence[Radiograph],
    subgroup: NDArray[np.bool_],
    *,
    split: str,
    val_fraction: float,
    seed: int,
    limit: int | None = None,
) -> Splits:
    """Hold out a subgroup, and a drawn share of the other class's patients, from training.

    If the subgroup has one class only, patients of the other class are drawn, as large a share of it, so that the
    held-out split has both. Patients with radiographs inside and outside of it are left out of training.

    Args:
        radiographs: Radiographs to split.
        subgroup: bool (n,), membership in the subgroup.
        split: "test" (validation is drawn from the other patients) or "val" (there is no test split).
        val_fraction: Share of the remaining patients to validate on, if `split` is "test".
        seed: Seed of the draws.
        limit: Maximum number of held-out radiographs, drawn at random; None = all.

    Raises:
        DataError: The subgroup is empty, or too few patients remain.
    """
    labels = np.array([radiograph.label for radiograph in radiographs])
    patients = np.array([radiograph.patient for radiograph in radiographs])
    held = subgroup.copy()
    share = max(float(subgroup[labels == label].mean()) for label in (NORMAL, PNEUMONIA))
    if share == 0:
        raise DataError("no radiograph is in this subgroup", remedy="see --help for how subgroups are recognised")
    random = np.random.default_rng(seed)
    for label in (NORMAL, PNEUMONIA):
        if not subgroup[labels == label].any():
            everyone = np.unique(patients[labels == label])
            drawn = random.choice(everyone, max(1, round(share * len(everyone))), replace=False)
            held |= (labels == label) & np.isin(patients, drawn)
    rest = np.flatnonzero(~held & ~np.isin(patients, patients[held]))
    held_out = np.flatnonzero(held)
    if limit and len(held_out) > limit:
        held_out = np.sort(random.choice(held_out, limit, replace=False))
    if split == VAL:
        return Splits(rest, held_out, np.array([], dtype=int), ())
    drawn_splits = split_by_patient([radiographs[i] for i in rest], val_fraction=val_fraction, seed=seed)
    return Splits(rest[drawn_splits.train], rest[drawn_splits.val], held_out, ())


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--data", type=_FOLDER, required=True, help="Folder in the Kaggle layout, as for finetune.run.")
@click.option("--subgroup", type=click.Choice(["all", *SUBGROUPS]), default="all", help="Subgroup to hold out.")
@click.option(
    "--split",
    type=click.Choice([TEST, VAL]),
    default=TEST,
    help="Split that receives the subgroup: test to estimate performance, val to choose settings.",
)
@click.option("--out", type=_FOLDER, default=Path("runs/holdouts"), help="Folder for the splits.")
@click.option("--cache", type=_FOLDER, default=None, help="Folder of decoded images.  [default: OUT/../cache]")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0.02, 0.5),
    default=0.15,
    help="Share of the remaining patients to validate on.",
)
@click.option(
    "--limit", type=click.IntRange(10), default=None, help="Maximum number of held-out radiographs.  [default: all]"
)
@setting(DataSettings, "labels")
@setting(DataSettings, "conflicts")
@click.option("--seed", type=int, default=0, help="Seed of the draws.")
def main(
    data: Path,
    subgroup: str,
    split: str,
    out: Path,
    cache: Path | None,
    val_fraction: float,
    limit: int | None,
    seed: int,
    labels: str | None,
    conflicts: str,
) -> None:
    """Run the command line."""
    from finetune.data.datamodule import prepare_data

    with plain_errors():
        datamodule = prepare_data(
            DataSettings(data, labels=labels, conflicts=conflicts, seed=seed), cache or out.parent / "cache"
        )
        radiographs = datamodule.cache.radiographs
        out.mkdir(parents=True, exist_ok=True)
        for name in SUBGROUPS if subgroup == "all" else [subgroup]:
            try:
                members = SUBGROUPS[name](radiographs)
                splits = hold_out(radiographs, members, split=split, val_fraction=val_fraction, seed=seed, limit=limit)
            except DataError as err:
                if subgroup != "all":
                    raise
                console.print(f"{name}: {err}", style="yellow")
                continue
            path = out / f"{name}.csv"
            save_splits(path, radiographs, splits, datamodule.source.root)
            sizes = ", ".join(f"{len(splits.indices(part))} {part}" for part in SPLIT_NAMES)
            console.print(f"{path}: {sizes}")


if __name__ == "__main__":
    main()
