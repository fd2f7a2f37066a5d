"""Contents of a complete run folder: figures, splits, pictures, environment and checkpoint."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.data.datamodule import DataModule
from finetune.data.left_out import write_left_out
from finetune.data.names import shown
from finetune.data.records import SPLIT_NAMES, TEST, TRAIN, VAL, class_counts
from finetune.data.splits import save_splits
from finetune.evaluation.metrics import Scores, summarise
from finetune.models.checkpoint import checkpoint_hashes, save_checkpoint, zero_shot_seed
from finetune.models.decision import DecisionRule
from finetune.models.served_model import ServedModel
from finetune.reports.plots import confusion_picture, roc_picture
from finetune.reports.training_plots import augmentation_picture, curves_picture
from finetune.run_folder import (
    CHECKPOINT_FOLDER,
    CURVES_FILE,
    CURVES_FOLDER,
    ENVIRONMENT_FILE,
    LEFT_OUT_FILE,
    METRICS_FILE,
    PARITY_FILE,
    SPLITS_FILE,
    UNREADABLE_FILE,
)
from finetune.settings import RunSettings
from xray_client import LABELS

from .environment import data_hash, environment, peak_memory
from .experiment import Experiment

PARITY_IMAGES = 64

Figures = dict[str, dict[str, Any]]


def write_outputs(
    folder: Path,
    settings: RunSettings,
    experiment: Experiment,
    answer: DecisionRule,
    *,
    training_seconds: float,
) -> dict[str, Any]:
    """Evaluate a finished experiment and write everything into `folder`; returns what is in its metrics.json."""
    stages = experiment.scores(answer.operating_point)
    figures: dict[str, Figures] = {
        split: {stage: summarise(scores, seed=settings.data.seed) for stage, scores in of_split.items()}
        for split, of_split in stages.items()
    }
    metrics = _metrics(settings, experiment, answer, figures, training_seconds)
    datamodule, training = experiment.datamodule, settings.training
    save_splits(
        folder / SPLITS_FILE,
        datamodule.cache.radiographs,
        datamodule.splits,
        datamodule.source.root,
        probability=experiment.probability["after"],
    )
    _evaluation_pictures(folder, metrics["trained_on"]["folder"], stages, figures)
    if training.epochs > 0:
        curves_picture(folder / CURVES_FOLDER / CURVES_FILE, folder / "curves.png")
        if training.augmentation or training.degradation:
            dataset = datamodule.dataset(TRAIN, augmentation=training.augmentation, degradation=training.degradation)
            augmentation_picture(dataset, training.seed, folder / "augmentation.png")
    if datamodule.cache.unreadable:
        lines = [f"{shown(name)}\t{reason}\n" for name, reason in datamodule.cache.unreadable]
        (folder / UNREADABLE_FILE).write_text("".join(lines), encoding="utf-8")
    if datamodule.source.left_out:
        write_left_out(folder / LEFT_OUT_FILE, datamodule.source.left_out)
    (folder / ENVIRONMENT_FILE).write_text(json.dumps(environment(), indent=2) + "\n")
    (folder / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n")
    checkpoint = folder / CHECKPOINT_FOLDER
    checkpoint.mkdir(exist_ok=True)
    np.save(checkpoint / PARITY_FILE, _parity_images(datamodule))
    save_checkpoint(ServedModel(experiment.classifier, answer).eval(), checkpoint, metrics)
    return metrics


def _metrics(
    settings: RunSettings,
    experiment: Experiment,
    answer: DecisionRule,
    figures: dict[str, Figures],
    training_seconds: float,
) -> dict[str, Any]:
    start, provenance = settings.model.start, experiment.classifier.provenance
    return {
        "trained_on": _describe(experiment.datamodule),
        "training": {
            **asdict(settings.training),
            "seconds": round(training_seconds, 1),
            "peak_memory_bytes": peak_memory(),
            "best_validation_auroc": experiment.aurocs,
        },
        "start": [checkpoint_hashes(path) for path in start],
        "zero_shot_seed": zero_shot_seed(start, settings.training.seed),
        "weights": provenance.as_dict() if provenance else None,
        "decision": {
            "temperature": answer.calibration.temperature,
            "bias": answer.calibration.bias,
            "operating_point": answer.operating_point,
            "uncertain_band": list(answer.band),
            "sensitivity_asked": None if settings.answer.balanced_point else settings.answer.sensitivity,
            "coverage": answer.coverage,
            "fitted_on": "validation",
        },
        "software": {name: version(name) for name in ("torch", "timm", "lightning")}
        | {"python": platform.python_version()},
        "metrics": {
            "intervals": "95 %, bootstrap over patients, 1000 resamples",
            "selection": "validation also chose the epoch, the calibration and the operating point; test chose nothing",
            **figures,
        },
    }


def _describe(datamodule: DataModule) -> dict[str, Any]:
    radiographs, digests = datamodule.cache.radiographs, datamodule.cache.digests
    return {
        "folder": datamodule.source.name,
        "split": datamodule.split_method,
        **{
            name: dict(zip(LABELS, class_counts(datamodule.labels[datamodule.indices(name)]), strict=True))
            for name in SPLIT_NAMES
        },
        "sha256": {
            name: data_hash((digests[i], radiographs[i].label) for i in datamodule.indices(name))
            for name in SPLIT_NAMES
            if len(datamodule.indices(name))
        },
        "notes": list(datamodule.source.notes),
        "left_out": sum(entry.files for entry in datamodule.source.left_out),
        "unreadable": len(datamodule.cache.unreadable),
        "near_duplicates": datamodule.near_duplicates,
        "patients_removed_from_training": list(datamodule.splits.leaked_patients),
    }


def _evaluation_pictures(
    folder: Path, name: str, stages: dict[str, dict[str, Scores]], figures: dict[str, Figures]
) -> None:
    for split, title in ((VAL, "validation, split by patient"), (TEST, "test")):
        if scores := stages.get(split):
            shown = f"{name}, {title} (n = {len(scores['after'].labels)})"
            roc_picture(scores, figures[split], shown, folder / f"roc_{split}.png")
            confusion_picture(scores["before"], scores["after"], shown, folder / f"confusion_{split}.png")


def _parity_images(datamodule: DataModule) -> NDArray[np.uint8]:
    """Some radiographs of validation, evenly chosen, to compare engines on: uint8 (n, 1, s, s)."""
    val = datamodule.indices(VAL)
    chosen = val[np.linspace(0, len(val) - 1, min(PARITY_IMAGES, len(val))).astype(int)]
    images: NDArray[np.uint8] = datamodule.cache.images[datamodule.cache.rows[chosen]][:, None]
    return images
