"""Plots of training: its curves, and examples of augmented radiographs."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib as mpl
import numpy as np

from finetune.data.sampling import CachedRadiographs
from xray_client import LABELS

from .plots import save

mpl.use("Agg")
from matplotlib import pyplot as plt

_SAMPLES = 7


def curves_picture(metrics: Path, path: Path) -> None:
    """Plot loss and validation AUROC by epoch, from the `metrics.csv` of a run."""
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for name, label, colour in (("loss", "training", "#0072B2"), ("val_loss", "validation", "#E69F00")):
        left.plot(epochs, [float(row[name]) for row in rows], "o-", color=colour, label=label, markersize=4)
    left.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    auroc = [float(row["val_auroc"]) for row in rows]
    right.plot(epochs, auroc, "o-", color="#0072B2", markersize=4)
    best = int(np.argmax(auroc))
    right.plot(epochs[best], auroc[best], "o", color="#D55E00", markersize=8, label=f"kept: {auroc[best]:.4f}")
    right.set(xlabel="epoch", ylabel="validation AUROC")
    right.ticklabel_format(useOffset=False)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def augmentation_picture(dataset: CachedRadiographs, seed: int, path: Path) -> None:
    """Plot two radiographs of each class, original and augmented."""
    random = np.random.default_rng(seed)
    chosen = [
        (name, index)
        for label, name in enumerate(LABELS)
        for index in random.choice(np.flatnonzero(dataset.labels == label), 2)
    ]
    figure, grid = plt.subplots(
        len(chosen), _SAMPLES, figsize=(_SAMPLES * 1.5, len(chosen) * 1.56), layout="constrained"
    )
    for (name, index), axes in zip(chosen, grid, strict=True):
        drawn: list[int | tuple[int, int]] = [
            int(index),
            *((int(index), int(s)) for s in random.integers(0, 2**62, _SAMPLES - 1)),
        ]
        for axis, draw in zip(axes, drawn, strict=True):
            axis.imshow(dataset[draw][0][0], cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, fontsize=9)
    grid[0][0].set_title("original", fontsize=9)
    grid[0][1].set_title("augmented", fontsize=9, loc="left")
    save(figure, path)
