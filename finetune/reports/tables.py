"""Tables of an evaluation: every prediction, and the figures for a paper."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from finetune.data.names import ENCODING_ERRORS, file_name
from finetune.evaluation.evaluation import Evaluation
from xray_client import FINDINGS, LABELS

PREDICTIONS_FILE, METRICS_CSV, METRICS_TEX = "predictions.csv", "metrics.csv", "metrics.tex"
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "&%$#_{}"})


def write_predictions(evaluation: Evaluation, root: Path, path: Path) -> None:
    """Write a line for each radiograph: file, patient, label, answer, and the further columns of its table.

    Args:
        evaluation: Result of the evaluation.
        root: Folder that the names of the files are relative to.
        path: Target file.
    """
    further = sorted({name for radiograph in evaluation.radiographs for name in radiograph.metadata})
    columns = ["file", "patient", "label", "probability", "finding", "novelty", "correct"]
    columns += [name for name in further if name not in columns]
    scores, predictions = evaluation.stages["after"], evaluation.predictions
    with path.open("w", newline="", encoding="utf-8", errors=ENCODING_ERRORS) as file:
        rows = csv.DictWriter(file, columns)
        rows.writeheader()
        for i, radiograph in enumerate(evaluation.radiographs):
            rows.writerow({
                **radiograph.metadata,
                "file": file_name(radiograph.path, root),
                "patient": radiograph.patient,
                "label": LABELS[radiograph.label],
                "probability": f"{predictions.probability[i]:.6f}",
                "finding": FINDINGS[predictions.decision[i]],
                "novelty": f"{predictions.novelty[i]:.4f}",
                "correct": int(scores.predicted[i] == radiograph.label),
            })  # fmt: skip


def write_tables(figures: dict[str, Any], folder: Path) -> None:
    """Write all figures with their intervals as metrics.csv, and as metrics.tex for a paper (package booktabs).

    Args:
        figures: Content of `evaluation.json`.
        folder: Target folder.
    """
    rows = list(_rows(figures))
    with (folder / METRICS_CSV).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["of", "metric", "value", "low", "high", "images", "patients"])
        writer.writerows(rows)
    lines = ["\\begin{tabular}{llrr}", "\\toprule", "of & metric & value (95\\,\\% interval) & n \\\\", "\\midrule"]
    lines += [
        f"{of.translate(_SPECIAL)} & {metric.replace('_', ' ')} & {value:.3f} ({low:.3f} to {high:.3f}) & {images} \\\\"
        for of, metric, value, low, high, images, _ in rows
    ]
    (folder / METRICS_TEX).write_text("\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n", encoding="utf-8")


def _rows(figures: dict[str, Any]) -> Any:
    after = figures["stages"]["after"]
    parts = [(name, stage, stage) for name, stage in figures["stages"].items()]
    if "against" in figures:
        against = figures["against"]
        parts += [(f"against {against['model']}", against["figures"], after)]
        parts += [(f"difference to {against['model']}", against["differences"], after)]
    if "predictive_values" in figures:
        values = figures["predictive_values"]
        parts.append((f"at a prevalence of {values['prevalence']:g}", values["figures"], after))
    parts += [(f"{g['by']} {g['group']}", g["figures"], g) for g in figures.get("subgroups", ())]
    for of, found, counts in parts:
        for metric, e in found.items():
            if isinstance(e, dict) and "value" in e:
                yield of, metric, e["value"], e["low"], e["high"], counts["images"], counts["patients"]
