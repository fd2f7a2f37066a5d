"""Plots of a run and of an evaluation, in colours for colour-blind readers (Okabe-Ito)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image
from sklearn.metrics import precision_recall_curve, roc_curve

from finetune.evaluation.metrics import CALIBRATION_BINS, Scores
from xray_client import LABELS, RESEARCH_USE

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_COLOURS = ("#999999", "#E69F00", "#0072B2", "#009E73")


def roc_picture(scores: Mapping[str, Scores], figures: Mapping[str, dict[str, Any]], title: str, path: Path) -> None:
    """Plot the ROC curve of each stage, with its AUROC and interval, and the operating point of the last stage."""
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
    save(figure, path)


def confusion_picture(before: Scores, after: Scores, title: str, path: Path) -> None:
    """Plot the confusion matrices before and after fine-tuning, with counts and shares of each row."""
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
    save(figure, path)


def precision_recall_picture(
    scores: Mapping[str, Scores], figures: Mapping[str, dict[str, Any]], title: str, path: Path
) -> None:
    """Plot precision against sensitivity for each stage, with the prevalence of Pneumonia as the chance level."""
    figure, axes = plt.subplots(figsize=(5.6, 5.4), layout="constrained")
    for (name, stage), colour in zip(scores.items(), _COLOURS, strict=False):
        precision, recall, _ = precision_recall_curve(stage.labels, stage.probability)
        area = figures[name]["auprc"]
        label = f"{name.replace('_', ' ')}: AUPRC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"
        axes.plot(recall, precision, color=colour, linewidth=2, label=label)
    share = next(iter(scores.values())).labels.mean()
    axes.axhline(share, color="#cccccc", linestyle=":", linewidth=1, label=f"chance: {share:.3f}")
    axes.set(xlabel="sensitivity", ylabel="positive predictive value", title=title, xlim=(0, 1.01), ylim=(0, 1.01))
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def reliability_picture(scores: Scores, error: Mapping[str, float], title: str, path: Path) -> None:
    """Plot the share of Pneumonia in each bin of predicted probability; the area of a point is the size of its bin."""
    figure, axes = plt.subplots(figsize=(5.6, 5.4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="#cccccc", linewidth=1, linestyle=":")
    bins = np.minimum((scores.probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    filled = count > 0
    predicted = np.bincount(bins, scores.probability, CALIBRATION_BINS)[filled] / count[filled]
    observed = np.bincount(bins, scores.labels, CALIBRATION_BINS)[filled] / count[filled]
    axes.plot(predicted, observed, color=_COLOURS[2], linewidth=1)
    axes.scatter(predicted, observed, 12 + 240 * count[filled] / count.max(), color=_COLOURS[2], alpha=0.7)
    for x, y, n in zip(predicted, observed, count[filled], strict=True):
        axes.annotate(str(n), (x, y), textcoords="offset points", xytext=(6, -10), fontsize=7)
    axes.set(
        xlabel="predicted probability of Pneumonia",
        ylabel="observed share of Pneumonia",
        title=f"{title}\nECE {error['value']:.3f} ({error['low']:.3f} to {error['high']:.3f})",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def histogram_picture(scores: Scores, title: str, path: Path) -> None:
    """Plot the histogram of the predicted probability for each class, on a logarithmic scale."""
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    parts = [scores.probability[scores.labels == label] for label in range(len(LABELS))]
    axes.hist(parts, bins=np.linspace(0, 1, 31).tolist(), color=[_COLOURS[2], _COLOURS[1]], label=LABELS, log=True)
    axes.axvline(scores.threshold, color="black", linewidth=1, linestyle="--", label="operating point")
    axes.set(xlabel="probability of Pneumonia", ylabel="radiographs", title=title)
    axes.legend(loc="upper center", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def robustness_picture(found: Mapping[str, Any], title: str, path: Path) -> None:
    """Plot AUROC, sensitivity and specificity against the level of each change."""
    changes = found["changes"]
    columns = 4
    figure, grid = plt.subplots(
        -(-len(changes) // columns), columns, figsize=(12, 5.6), sharey=True, layout="constrained"
    )
    for axis, (name, curve) in zip(grid.flat, changes.items(), strict=False):
        for metric, colour in zip(("auroc", "sensitivity", "specificity"), _COLOURS[1:], strict=True):
            label = metric.replace("auroc", "AUROC")
            axis.plot(curve["levels"], curve[metric], "o-", color=colour, markersize=3, label=label)
        axis.set(title=name, xlabel=curve["unit"], ylim=(-0.02, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    for axis in grid.flat[len(changes) :]:
        axis.axis("off")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    grid.flat[-1].legend(handles, labels, loc="center", frameon=False)
    figure.suptitle(f"{title}; {found['radiographs']} of them, changed", fontsize=11)
    save(figure, path)


def threshold_picture(scores: Scores, title: str, path: Path) -> None:
    """Plot sensitivity and specificity against the threshold, and mark the operating point."""
    figure, axes = plt.subplots(figsize=(5.6, 5.4), layout="constrained")
    false_positive, true_positive, thresholds = roc_curve(scores.labels, scores.probability, drop_intermediate=False)
    inside = np.isfinite(thresholds)
    axes.step(thresholds[inside], true_positive[inside], color=_COLOURS[1], linewidth=2, label="sensitivity")
    axes.step(thresholds[inside], 1 - false_positive[inside], color=_COLOURS[2], linewidth=2, label="specificity")
    axes.axvline(scores.threshold, color="#D55E00", linestyle=":", label=f"operating point {scores.threshold:.3f}")
    axes.set(xlabel="threshold of the probability of Pneumonia", title=title, xlim=(0, 1), ylim=(0, 1.01))
    axes.legend(loc="lower center", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def net_benefit_picture(scores: Scores, title: str, path: Path) -> None:
    """Plot the decision curve: the net benefit of acting on the model (Vickers and Elkin 2006).

    Found cases, less false alarms at the weight that the threshold gives them, per radiograph; beside acting on
    everybody and on nobody.
    """
    figure, axes = plt.subplots(figsize=(5.6, 5.4), layout="constrained")
    thresholds = np.linspace(0.01, 0.99, 99)
    odds, share = thresholds / (1 - thresholds), scores.labels.mean()
    flagged = scores.probability[None] >= thresholds[:, None]
    model = (flagged & (scores.labels == 1)).mean(axis=1) - odds * (flagged & (scores.labels == 0)).mean(axis=1)
    axes.plot(thresholds, model, color=_COLOURS[2], linewidth=2, label="this model")
    axes.plot(thresholds, share - (1 - share) * odds, color=_COLOURS[0], linewidth=1, label="act on everybody")
    axes.axhline(0, color="#cccccc", linewidth=1, label="act on nobody")
    axes.set(xlabel="threshold at which one would act", ylabel="net benefit", title=title, xlim=(0, 1),
             ylim=(-0.05, share * 1.05 + 0.01))  # fmt: skip
    axes.legend(loc="best", fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def gallery_picture(rows: Mapping[str, Sequence[tuple[Image.Image, str]]], columns: int, path: Path) -> None:
    """Plot rows of captioned overlays."""
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(2.1 * columns, 2.5 * len(rows)), squeeze=False, layout="constrained"
    )
    for axes, (name, tiles) in zip(grid, rows.items(), strict=True):
        for axis in axes:
            axis.axis("off")
        axes[0].set_title(f"{name}: none" if not tiles else "", loc="left", fontsize=10)
        for axis, (picture, caption) in zip(axes, tiles, strict=False):
            axis.imshow(picture)
            axis.set_title(f"{name}\n{caption}", fontsize=8)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a picture with the notice of research use below it, and close it."""
    figure.supxlabel(RESEARCH_USE, fontsize=7, color="#666666")
    figure.savefig(path, dpi=130)
    plt.close(figure)
