"""One training run, from records to a complete run folder. `finetune.run` is its command line."""

from __future__ import annotations

import copy
import csv
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from xray_build.console import console
from xray_client import LABELS, Preprocessing

from .cache import Cache, already_square, build_cache
from .data import Splits, class_counts, merge_duplicates, scan, split_by_patient
from .metrics import Scores, summarise
from .model import ModelConfig, RadiographClassifier
from .plots import confusion_picture, roc_picture
from .served import ServedModel, save_checkpoint
from .train import CachedRadiographs, TrainSettings, mean_features, train_full, train_head
from .trust import Trust, conformal_band, fit_novelty, fit_temperature, operating_point

PARITY_IMAGES = 64
PARITY_FILE = "parity_images.npy"

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class DataSettings:
    """What to train on.

    Args:
        root: Folder of radiographs.
        cache: Folder of prepared images.
        val_fraction: Share of patients to validate on.
        geometry: "pad", "stretch" or "auto".
        seed: Of the split.
    """

    root: Path
    cache: Path
    val_fraction: float = 0.15
    geometry: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class TrustSettings:
    """What the answer promises on validation: sensitivity of the operating point, coverage of the conformal sets."""

    sensitivity: float = 0.98
    coverage: float = 0.95


@dataclass(frozen=True)
class Material:
    """Prepared radiographs and their split."""

    root: Path
    preprocessing: Preprocessing
    cache: Cache
    splits: Splits

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.array([record.label for record in self.cache.records]))
        object.__setattr__(self, "patients", np.array([record.patient for record in self.cache.records]))

    labels: np.ndarray = None  # type: ignore[assignment]
    patients: np.ndarray = None  # type: ignore[assignment]

    def dataset(self, part: np.ndarray, *, augment: bool) -> CachedRadiographs:
        """The radiographs of one part of the split."""
        return CachedRadiographs(self.cache.images, self.cache.rows[part], self.labels[part], augment=augment)


def gather(settings: DataSettings) -> Material:
    """Find, decode and split the radiographs; says what it found.

    Raises:
        DataError: See `scan`, `build_cache` and `split_by_patient`.
    """
    records = scan(settings.root)
    geometry = settings.geometry
    if geometry == "auto":
        geometry = "stretch" if already_square(records, Preprocessing().size) else "pad"
        reason = "the images were stretched to squares already" if geometry == "stretch" else "as MedCLIP does"
        console.print(f"geometry: {geometry}, {reason}")
    preprocessing = Preprocessing(geometry=geometry)
    cache = build_cache(records, preprocessing, settings.root, settings.cache)
    for name, reason in cache.unreadable:
        console.print(f"unreadable, left out: {name}: {reason}", style="yellow")
    cache = replace(cache, records=merge_duplicates(cache.records, cache.digests))
    splits = split_by_patient(cache.records, val_fraction=settings.val_fraction, seed=settings.seed)
    material = Material(settings.root, preprocessing, cache, splits)
    if splits.leaked_patients:
        console.print(
            f"{len(splits.leaked_patients)} patients are in training and in test; taken out of training", style="yellow"
        )
    for name in ("train", "val", "test"):
        part = getattr(splits, name)
        if len(part):
            counts = ", ".join(
                f"{n} {label}" for n, label in zip(class_counts(material.labels[part]), LABELS, strict=True)
            )
            console.print(f"{name}: {len(part)} radiographs of {len(set(material.patients[part]))} patients ({counts})")
    return material


def run(
    data: DataSettings, model: ModelConfig, training: TrainSettings, trust: TrustSettings, folder: Path
) -> dict[str, Any]:
    """Train, evaluate and write everything into `folder`; returns what is in its `metrics.json`."""
    started = time.monotonic()
    material = gather(data)
    L.seed_everything(training.seed, verbose=False)
    classifier = RadiographClassifier(replace(model, preprocessing=material.preprocessing))

    stages: dict[str, dict[str, Scores]] = {"validation": {}, "test": {}}
    features = {name: _features(classifier, material, name) for name in ("train", "val", "test")}
    _score(stages, "before", classifier, features, material, threshold=0.5)
    aurocs = {}
    if training.head_epochs > 0:
        train, val = (
            (features[name], torch.from_numpy(material.labels[_part(material, name)])) for name in ("train", "val")
        )
        aurocs["head_only"] = train_head(classifier, train, val, training)
        console.print(f"head trained: validation AUROC {aurocs['head_only']:.4f}")
        _score(stages, "head_only", classifier, features, material, threshold=0.5)
    if training.epochs > 0:
        head = copy.deepcopy(classifier.state_dict())
        aurocs["fine_tuned"] = train_full(
            classifier,
            material.dataset(material.splits.train, augment=True),
            material.dataset(material.splits.val, augment=False),
            training,
            folder,
        )
        if aurocs["fine_tuned"] < aurocs.get("head_only", 0.0):
            console.print(
                "fine-tuning did not improve validation AUROC; the head stage's weights are kept", style="yellow"
            )
            classifier.load_state_dict(head)
        features = {name: _features(classifier, material, name) for name in ("train", "val", "test")}
    training_seconds = time.monotonic() - started

    fitted = _fit_trust(classifier, features, material, trust)
    _score(
        stages,
        "after",
        classifier,
        features,
        material,
        threshold=fitted.operating_point,
        temperature=fitted.temperature,
    )
    figures: dict[str, Figures] = {
        split: {stage: summarise(scores, seed=data.seed) for stage, scores in of_split.items()}
        for split, of_split in stages.items()
        if of_split
    }
    served = ServedModel(classifier, fitted).eval()
    about = {
        "trained_on": _describe(material, data),
        "training": {**asdict(training), "seconds": round(training_seconds, 1), "best_validation_auroc": aurocs},
        "trust": {
            "temperature": fitted.temperature,
            "operating_point": fitted.operating_point,
            "uncertain_band": list(fitted.band),
            "sensitivity_asked": trust.sensitivity,
            "coverage": fitted.coverage,
            "fitted_on": "validation",
        },
        "software": {name: version(name) for name in ("torch", "timm", "lightning")}
        | {"python": platform.python_version()},
    }
    metrics = {
        "intervals": "95 %, bootstrap over patients, 1000 resamples",
        "selection": "validation also chose the epoch, the temperature and the operating point; test chose nothing",
        **figures,
    }
    _write(folder, served, material, stages, figures, {**about, "metrics": metrics})
    return {**about, "metrics": metrics}


def _part(material: Material, name: str) -> np.ndarray:
    return getattr(material.splits, name)


def _features(classifier: RadiographClassifier, material: Material, name: str) -> torch.Tensor:
    rows = material.cache.rows[_part(material, name)]
    return mean_features(classifier, material.cache.images, rows, what=f"features of {name}")


@torch.inference_mode()
def _score(
    stages: dict[str, dict[str, Scores]],
    stage: str,
    classifier: RadiographClassifier,
    features: dict[str, torch.Tensor],
    material: Material,
    *,
    threshold: float,
    temperature: float = 1.0,
) -> None:
    classifier.eval()
    for split, name in (("validation", "val"), ("test", "test")):
        part = _part(material, name)
        if len(part):
            probability = torch.softmax(classifier.logits_of_pooled(features[name]) / temperature, dim=1)[:, 1].numpy()
            stages[split][stage] = Scores(probability, material.labels[part], material.patients[part], threshold)


def _fit_trust(
    classifier: RadiographClassifier, features: dict[str, torch.Tensor], material: Material, settings: TrustSettings
) -> Trust:
    labels = material.labels[material.splits.val]
    with torch.inference_mode():
        logits = classifier.eval().logits_of_pooled(features["val"])
    temperature = fit_temperature(logits.clone(), torch.from_numpy(labels))
    probability = torch.softmax(logits / temperature, dim=1)[:, 1].numpy()
    threshold = operating_point(probability, labels, sensitivity=settings.sensitivity)
    band, coverage = conformal_band(probability, labels, threshold, coverage=settings.coverage)
    if coverage < settings.coverage:
        console.print(
            f"validation is too small to promise a coverage of {settings.coverage:.1%}; {coverage:.1%} is used",
            style="yellow",
        )
    return Trust(
        temperature, threshold, band, coverage, fit_novelty(features["train"].numpy(), features["val"].numpy())
    )


def _describe(material: Material, data: DataSettings) -> dict[str, Any]:
    return {
        "folder": data.root.resolve().name,
        "split": f"by patient, seed {data.seed}, {data.val_fraction:.0%} of patients to validation",
        **{
            name: dict(zip(LABELS, class_counts(material.labels[_part(material, name)]), strict=True))
            for name in ("train", "val", "test")
        },
        "unreadable": len(material.cache.unreadable),
        "patients_removed_from_training": list(material.splits.leaked_patients),
    }


def _write(
    folder: Path,
    served: ServedModel,
    material: Material,
    stages: dict[str, dict[str, Scores]],
    figures: dict[str, Figures],
    metrics: dict[str, Any],
) -> None:
    with (folder / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "patient", "split", "probability"])
        for split, name in (("train", "train"), ("validation", "val"), ("test", "test")):
            part = _part(material, name)
            probability = stages[split]["after"].probability if len(part) and split in stages else [None] * len(part)
            for i, p in zip(part, probability, strict=True):
                record = material.cache.records[i]
                file_name = record.path.relative_to(material.root)
                writer.writerow([file_name, LABELS[record.label], record.patient, split, p])
    for split, title in (("validation", "validation, split by patient"), ("test", "test")):
        if stages[split]:
            scores = stages[split]
            shown = f"{metrics['trained_on']['folder']}, {title} (n = {len(scores['after'].labels)})"
            roc_picture(scores, figures[split], shown, folder / f"roc_{split}.png")
            confusion_picture(scores["before"], scores["after"], shown, folder / f"confusion_{split}.png")
    if material.cache.unreadable:
        lines = [f"{name}\t{reason}" for name, reason in material.cache.unreadable]
        (folder / "unreadable.txt").write_text("\n".join(lines) + "\n")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    val = material.splits.val
    chosen = val[np.linspace(0, len(val) - 1, min(PARITY_IMAGES, len(val))).astype(int)]
    np.save(checkpoint / PARITY_FILE, material.cache.images[material.cache.rows[chosen]][:, None])
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    save_checkpoint(served, checkpoint, metrics)
