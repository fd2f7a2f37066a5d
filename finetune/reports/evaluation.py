"""Report of an evaluation: plots, a self-contained HTML page and the model card."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from finetune.data.names import shown
from finetune.evaluation.evaluation import Evaluation
from xray_client import FINDINGS, LABELS, RESEARCH_USE, Preprocessing, render_overlay

from .plots import (
    confusion_picture,
    gallery_picture,
    histogram_picture,
    net_benefit_picture,
    precision_recall_picture,
    reliability_picture,
    robustness_picture,
    roc_picture,
    threshold_picture,
)
from .tables import PREDICTIONS_FILE, write_predictions, write_tables

FIGURES_FILE, CARD_FILE = "evaluation.json", "MODEL_CARD.md"
_SHOWN = 6  # radiographs a row of the gallery
_NAME = 28  # characters


def write_report(
    evaluation: Evaluation, preprocessing: Preprocessing, about: dict[str, Any], out: Path, *, root: Path
) -> Path:
    """Write evaluation.json, the plots, report.html and, for a checkpoint, MODEL_CARD.md.

    Args:
        evaluation: Result of the evaluation.
        preprocessing: Preprocessing of the model.
        about: The checkpoint's `about`; empty for a served model.
        out: Target folder, created if necessary.
        root: Folder that the names of the radiographs are relative to.

    Returns:
        Path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures, stages = evaluation.figures, evaluation.stages
    data = figures["data"]
    title = f"{data['source']}, {data['split']} (n = {len(evaluation.radiographs)})"
    plots = ["confusion", "reliability", "histogram"]
    if "auroc" in figures["stages"]["after"]:
        roc_picture(stages, figures["stages"], title, out / "roc.png")
        precision_recall_picture(stages, figures["stages"], title, out / "precision_recall.png")
        threshold_picture(stages["after"], title, out / "threshold.png")
        net_benefit_picture(stages["after"], title, out / "net_benefit.png")
        plots += ["roc", "precision_recall", "threshold", "net_benefit"]
    confusion_picture(next(iter(stages.values())), stages["after"], title, out / "confusion.png")
    reliability_picture(stages["after"], figures["stages"]["after"]["ece"], title, out / "reliability.png")
    histogram_picture(stages["after"], title, out / "histogram.png")
    if "robustness" in figures:
        robustness_picture(figures["robustness"], title, out / "robustness.png")
        plots.append("robustness")
    _gallery(evaluation, Preprocessing(size=preprocessing.size, geometry="stretch"), out / "gallery.png")
    plots.append("gallery")
    write_predictions(evaluation, root, out / PREDICTIONS_FILE)
    write_tables(figures, out)
    (out / FIGURES_FILE).write_text(json.dumps({**figures, "research_use": RESEARCH_USE}, indent=2) + "\n")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True
    )
    known: dict[str, Any] = {"figures": figures, "about": about, "research_use": RESEARCH_USE, "findings": FINDINGS}
    inlined = {name: base64.b64encode((out / f"{name}.png").read_bytes()).decode() for name in plots}
    page = environment.get_template("evaluation.html.jinja").render(**known, plots=inlined)
    (out / "report.html").write_text(page, encoding="utf-8")
    if about:
        plain = environment.overlay(autoescape=False)
        (out / CARD_FILE).write_text(plain.get_template("model_card.md.jinja").render(**known), encoding="utf-8")
    return out / "report.html"


def _gallery(evaluation: Evaluation, whole: Preprocessing, path: Path) -> None:
    """Plot the wrong, the uncertain and the most confident predictions, one row each, with their heatmaps and files."""
    scores, predictions = evaluation.stages["after"], evaluation.predictions
    certain = predictions.decision < len(LABELS)
    confidence = np.abs(scores.probability - 0.5)
    by_confidence = np.argsort(-confidence, kind="stable")
    right = [i for i in by_confidence if certain[i] and predictions.decision[i] == scores.labels[i]]
    of_each = [[i for i in right if scores.labels[i] == label][: _SHOWN // 2] for label in range(len(LABELS))]
    rows = {
        "wrong": [i for i in by_confidence if certain[i] and predictions.decision[i] != scores.labels[i]][:_SHOWN],
        "uncertain": [i for i in by_confidence[::-1] if not certain[i]][:_SHOWN],
        "most confident, right": [i for pair in of_each for i in pair],
    }
    tiles = {
        name: [
            (
                render_overlay(Image.fromarray(evaluation.images[i]), predictions.heatmap[i], preprocessing=whole),
                f"{LABELS[scores.labels[i]]}, p = {scores.probability[i]:.3f}\n"
                f"{_short(evaluation.radiographs[i].path)}",
            )
            for i in chosen
        ]
        for name, chosen in rows.items()
    }
    gallery_picture(tiles, _SHOWN, path)


def _short(path: Path) -> str:
    """Name of a file, or its end, as it fits below a picture; `$` would begin a formula."""
    name = shown(path.stem).replace("$", "\\$")
    return name if len(name) <= _NAME else f"...{name[3 - _NAME :]}"
