"""Probes on non-diagnostic features (shortcuts): how well do they tell the classes apart without the chest?

    python -m finetune.shortcuts --data chest_xray

`finetune.audit` examines the files (size, aspect ratio, bytes), this the prepared images that the network sees:

rim          the outermost 12 of 224 pixels: collimation, labels, the edge of the film
grey levels  the histogram: exposure and display curve, regardless of place
sharpness    the power spectrum, averaged over directions: resolution, noise, compression
blockiness   differences across the 8-pixel grid of JPEG, relative to the others

Each probe is a logistic regression on standardised features, scored on patients that it was not fitted on (five folds
by patient). Some of these features also reflect disease (a consolidation is bright), so an AUROC is an upper bound of
what a shortcut could give.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xray_client import RESEARCH_USE
from xray_client.console import console, plain_errors, track
from xray_client.files import check_output, write_atomically

from .command_line import setting
from .data.records import TRAIN, VAL
from .settings import DataSettings

_RIM, _FOLDS = 12, 5

_FOLDER = click.Path(path_type=Path)


def _rim(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    strips = (image[:_RIM], image[-_RIM:], image[:, :_RIM].T, image[:, -_RIM:].T)
    return np.concatenate(
        [strip.mean(axis=0)[: 8 * (strip.shape[1] // 8)].reshape(-1, 8).mean(axis=1) for strip in strips]
    )


def _grey_levels(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.histogram(image, bins=32, range=(0, 256))[0] / image.size


def _sharpness(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    side = min(image.shape)
    power = np.abs(np.fft.fftshift(np.fft.fft2(image[:side, :side] - image.mean()))) ** 2
    y, x = np.indices(power.shape) - side // 2
    ring = np.hypot(y, x).astype(int)
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return np.log(mean[1 : side // 2] + 1)


def _blockiness(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    found = []
    for axis in (0, 1):
        step = np.abs(np.diff(image, axis=axis)).mean(axis=1 - axis)
        found += [step[phase::8].mean() / (step.mean() + 1e-6) for phase in range(8)]
    return np.array(found)


PROBES: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "rim": _rim,
    "grey levels": _grey_levels,
    "sharpness": _sharpness,
    "blockiness": _blockiness,
}


def probe_aurocs(
    images: npt.NDArray[Any], labels: npt.NDArray[Any], patients: npt.NDArray[Any], *, seed: int = 0
) -> dict[str, float]:
    """Return the AUROC of each probe for Pneumonia, on patients that it was not fitted on.

    Args:
        images: uint8 (n, s, s).
        labels: int (n,).
        patients: str (n,).
        seed: Seed of the folds.
    """
    values: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in PROBES}
    for image in track(images, "computing features", total=len(images)):
        wide = image.astype(np.float32)
        for name, features in PROBES.items():
            values[name].append(features(wide))
    folds = list(StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(images, labels, patients))
    found = {}
    for name, rows in values.items():
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced"))
        score = cross_val_predict(classifier, np.stack(rows), labels, cv=folds, method="decision_function")
        found[name] = float(roc_auc_score(labels, score))
    return found


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@setting(DataSettings, "labels")
@setting(DataSettings, "conflicts")
@click.option("--data", type=_FOLDER, required=True, help="Labelled radiographs, as for finetune.run.")
@click.option("--cache", type=_FOLDER, default=Path("runs/cache"), help="Folder of decoded images.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="JSON file to write.  [default: none]")
@click.option("--seed", default=0, help="Seed of the folds.")
def main(data: Path, labels: str | None, conflicts: str, cache: Path, out: Path | None, seed: int) -> None:
    """Run the command line."""
    from finetune.data.datamodule import prepare_data

    with plain_errors():
        if out is not None:
            check_output(out, ours=lambda head: head.startswith(b'{\n  "radiographs"'))
        datamodule = prepare_data(DataSettings(data, labels=labels, conflicts=conflicts, seed=seed), cache)
        known = np.concatenate([datamodule.indices(TRAIN), datamodule.indices(VAL)])  # test stays unseen
        found = probe_aurocs(
            np.asarray(datamodule.cache.images[datamodule.cache.rows[known]]),
            datamodule.labels[known],
            datamodule.patients[known],
            seed=seed,
        )
        table = Table(
            "probe", "AUROC", title=f"{datamodule.source.name}, {len(known)} radiographs, {_FOLDS} folds by patient"
        )
        for name, auroc in found.items():
            table.add_row(name, f"{auroc:.3f}")
        console.print(table)
        if out is not None:
            write_atomically(
                out, json.dumps({"radiographs": len(known), "folds": _FOLDS, "auroc": found}, indent=2) + "\n"
            )
        console.print(RESEARCH_USE)


if __name__ == "__main__":
    main()
