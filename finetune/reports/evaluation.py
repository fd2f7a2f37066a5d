"""What an evaluation found, for people: pictures, one self-contained page, and the model card."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from xray_client import FINDINGS, LABELS, RESEARCH_USE, Preprocessing, render_overlay

from .plots import (
    confusion_picture,
    gallery_picture,
    histogram_picture,
    precision_recall_picture,
    reliability_picture,
    robustness_picture,
    roc_picture,
)

if TYPE_CHECKING:
    from finetune.evaluation.evaluation import Evaluation

FIGURES_FILE, CARD_FILE = "evaluation.json", "MODEL_CARD.md"
_SHOWN = 6  # radiographs a row of the gallery


def write_report(evaluation: Evaluation, preprocessing: Preprocessing, about: dict[str, Any], out: Path) -> Path:
    """Write evaluation.json, the pictures, report.html and, where `about` tells of a checkpoint, MODEL_CARD.md.

    Returns:
        The path of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    figures, stages = evaluation.figures, evaluation.stages
    data = figures["data"]
    title = f"{data['source']}, {data['part']} (n = {len(evaluation.records)})"
    roc_picture(stages, figures["stages"], title, out / "roc.png")
    precision_recall_picture(stages, figures["stages"], title, out / "precision_recall.png")
    confusion_picture(next(iter(stages.values())), stages["after"], title, out / "confusion.png")
    reliability_picture(stages["after"], figures["stages"]["after"]["ece"], title, out / "reliability.png")
    histogram_picture(stages["after"], title, out / "histogram.png")
    pictures = ["roc", "precision_recall", "confusion", "reliability", "histogram"]
    if "robustness" in figures:
        robustness_picture(figures["robustness"], title, out / "robustness.png")
        pictures.append("robustness")
    _gallery(evaluation, Preprocessing(size=preprocessing.size, geometry="stretch"), out / "gallery.png")
    pictures.append("gallery")
    (out / FIGURES_FILE).write_text(json.dumps({**figures, "research_use": RESEARCH_USE}, indent=2) + "\n")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, trim_blocks=True
    )
    known: dict[str, Any] = {"figures": figures, "about": about, "research_use": RESEARCH_USE, "findings": FINDINGS}
    inlined = {name: base64.b64encode((out / f"{name}.png").read_bytes()).decode() for name in pictures}
    page = environment.get_template("evaluation.html.jinja").render(**known, pictures=inlined)
    (out / "report.html").write_text(page, encoding="utf-8")
    if about:
        plain = environment.overlay(autoescape=False)
        (out / CARD_FILE).write_text(plain.get_template("model_card.md.jinja").render(**known), encoding="utf-8")
    return out / "report.html"


def _gallery(evaluation: Evaluation, whole: Preprocessing, path: Path) -> None:
    """The surest, the wrong and the unsure, one row each, with their heatmaps."""
    scores, answers = evaluation.stages["after"], evaluation.answers
    certain = answers.decision < len(LABELS)
    sureness = np.abs(scores.probability - 0.5)
    surest_first = np.argsort(-sureness, kind="stable")
    right = [i for i in surest_first if certain[i] and answers.decision[i] == scores.labels[i]]
    of_each = [[i for i in right if scores.labels[i] == label][: _SHOWN // 2] for label in range(len(LABELS))]
    rows = {
        "surest, right": [i for pair in of_each for i in pair],
        "wrong": [i for i in surest_first if certain[i] and answers.decision[i] != scores.labels[i]][:_SHOWN],
        "unsure": [i for i in surest_first[::-1] if not certain[i]][:_SHOWN],
    }
    tiles = {
        name: [
            (
                render_overlay(Image.fromarray(evaluation.images[i]), answers.heatmap[i], preprocessing=whole),
                f"{LABELS[scores.labels[i]]}, p = {scores.probability[i]:.3f}",
            )
            for i in chosen
        ]
        for name, chosen in rows.items()
    }
    gallery_picture(tiles, _SHOWN, path)
