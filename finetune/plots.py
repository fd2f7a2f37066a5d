"""Pictures of a run: ROC curves and confusion matrices. Colours are told apart by colour-blind readers (Okabe-Ito)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from sklearn.metrics import roc_curve

from xray_client import LABELS, RESEARCH_USE

from .metrics import Scores

mpl.use("Agg")
from matplotlib import pyplot as plt

_COLOURS = ("#999999", "#E69F00", "#0072B2", "#009E73")


def roc_picture(scores: Mapping[str, Scores], figures: Mapping[str, dict], title: str, path: Path) -> None:
    """ROC curve of each stage, with its AUROC and interval, and the operating point of the last."""
    figure, axes = plt.subplots(figsize=(5.6, 5.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle=":")
    for (name, stage), colour in zip(scores.items(), _COLOURS, strict=False):
        false_positive, true_positive, _ = roc_curve(stage.labels, stage.probability, drop_intermediate=False)
        area = figures[name]["auroc"]
        label = f"{name.replace('_', ' ')}: AUROC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
        axes.plot(false_positive, true_positive, color=colour, linewidth=2, label=label)
    last = figures[list(scores)[-1]]
    axes.plot(
        1 - last["specificity"]["value"],
        last["sensitivity"]["value"],
        "o",
        color="#D55E00",
        markersize=8,
        label="operating point",
    )
    axes.set(
        xlabel="1 - specificity",
        ylabel="sensitivity",
        title=title,
        xlim=(-0.01, 1.01),
        ylim=(-0.01, 1.01),
        aspect="equal",
    )
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def confusion_picture(before: Scores, after: Scores, title: str, path: Path) -> None:
    """Confusion matrices before and after fine-tuning, counts and shares of each row."""
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.9), layout="constrained")
    for axis, stage, name in zip(axes, (before, after), ("before", "after"), strict=True):
        counts = stage.confusion
        shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row in range(2):
            for column in range(2):
                text = f"{counts[row, column]}\n{shares[row, column]:.1%}"
                colour = "white" if shares[row, column] > 0.55 else "black"
                axis.text(column, row, text, ha="center", va="center", color=colour)
        axis.set(
            xticks=range(2), yticks=range(2), xticklabels=LABELS, yticklabels=LABELS, xlabel="predicted", ylabel="true"
        )
        axis.set_title(f"{name} fine-tuning, threshold {stage.threshold:.2f}", fontsize=10)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.supxlabel(RESEARCH_USE, fontsize=7, color="#666666")
    figure.savefig(path, dpi=130)
    plt.close(figure)
