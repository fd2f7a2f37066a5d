"""One training run, from data to a complete run folder. `finetune.run` is its command line."""

from __future__ import annotations

import copy
import json
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from finetune.data.datamodule import DataModule, prepare_data
from finetune.data.records import SPLIT_NAMES, TEST, VAL, class_counts
from finetune.data.sampling import CachedRadiographs
from finetune.data.splits import SPLITS_FILE, save_splits
from finetune.evaluation.metrics import Scores, summarise
from finetune.models.checkpoint import checkpoint_hashes, mean_weights, save_checkpoint, zero_shot_seed
from finetune.models.classifier import ModelConfig, RadiographClassifier
from finetune.models.decision import (
    Calibration,
    DecisionRule,
    balanced_point,
    conformal_band,
    fit_calibration,
    fit_novelty,
    operating_point,
)
from finetune.models.served_model import ServedModel
from finetune.reports.plots import confusion_picture, roc_picture
from finetune.reports.training_plots import augmentation_picture, curves_picture
from finetune.settings import DataSettings, TrainSettings, TrustSettings
from xray_client import LABELS
from xray_client.console import console, track

from .environment import data_hash, environment, peak_memory
from .hardware import rank
from .trainer import interpolate, mean_features, train_full, train_head

PARITY_IMAGES = 64
PARITY_FILE = "parity_images.npy"
RESUME_FOLDER = "resume"
_SCORED_SPLITS = (VAL, TEST)
_WISE_FT_SHARES = tuple(i / 10 for i in range(11))

Figures = dict[str, dict[str, Any]]


class Experiment:
    """A run under way: its classifier, and how it scored at each stage.

    Args:
        datamodule: Radiographs to train and score on.
        model: The network.
        training: How to train.
        folder: Run folder; holds the state to go on from while the run is under way. None = nowhere.
        weights: MedCLIP's official weights, as `finetune.models.weights` reads them; None = the architecture's own
            start.
        start: Checkpoints to start from instead of zero-shot; of several, the mean of their weights (a model soup,
            Wortsman et al. 2022), which means something for runs that had the same start.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is of another network.
    """

    def __init__(
        self,
        datamodule: DataModule,
        model: ModelConfig,
        training: TrainSettings,
        folder: Path | None = None,
        *,
        weights: str | None = None,
        start: Sequence[Path] = (),
    ) -> None:
        L.seed_everything(training.seed, verbose=False)
        self.datamodule, self.training, self.folder = datamodule, training, folder
        self.classifier = RadiographClassifier(replace(model, preprocessing=datamodule.preprocessing), weights=weights)
        if start:
            self.classifier.load_state_dict(mean_weights(start, self.classifier.config))
        self.probability: dict[str, dict[str, np.ndarray]] = {}  # stage -> part -> (n,)
        self.aurocs: dict[str, float] = {}  # best on validation, as training saw it
        self.features: dict[str, Tensor] = {}

    def fit(self, *, callbacks: Any = ()) -> None:
        """Zero-shot, head, everything; goes on where an interrupted run stopped."""
        saved = self.folder / RESUME_FOLDER / "head.safetensors" if self.folder else None
        if saved and saved.is_file():
            self._load_head(saved)
        else:
            self._fit_head()
            if saved and rank() == 0:
                self._save_head(saved)
        if self.training.epochs > 0:
            start, start_auroc = copy.deepcopy(self.classifier.state_dict()), self.validated()
            self.aurocs["fine_tuned"] = train_full(
                self.classifier,
                self.datamodule.dataset(
                    "train", augmentation=self.training.augmentation, degradation=self.training.degradation
                ),
                self.validation,
                self.training,
                self.folder,
                callbacks=callbacks,
            )
            if self.training.wise_ft:
                self._choose_share(start)
            elif self.aurocs["fine_tuned"] < start_auroc:
                console.print(
                    "fine-tuning did not improve validation AUROC; the head stage's weights are kept", style="yellow"
                )
                self.classifier.load_state_dict(start)
            self.features = {}

    @cached_property
    def validation(self) -> CachedRadiographs:
        """The radiographs that the epoch is chosen by: the validation part, degraded where the settings ask for it."""
        plain = self.datamodule.dataset("val")
        if not self.training.degraded_validation:
            return plain
        varied = self.datamodule.dataset("val", degradation=self.training.degraded_validation)
        images = [varied[i, self.training.seed + i][0][0].numpy() for i in range(len(varied))]
        return CachedRadiographs(np.stack(images), np.arange(len(images)), plain.labels)

    def validated(self) -> float:
        """AUROC of the classifier as it is, on those radiographs."""
        degraded = self.training.degraded_validation > 0
        pooled = (
            mean_features(self.classifier, self.validation.images, self.validation.rows, what="degraded validation")
            if degraded
            else self.features_of("val")
        )
        with torch.inference_mode():
            logits = self.classifier.eval().logits_of_pooled(pooled)
        return float(roc_auc_score(self.validation.labels, logits[:, 1] - logits[:, 0]))

    def _fit_head(self) -> None:
        self.score("before")
        if self.training.head_epochs > 0:
            train, val = (
                (self.features_of(name), torch.from_numpy(self.datamodule.labels[self.datamodule.indices(name)]))
                for name in ("train", "val")
            )
            self.aurocs["head_only"] = train_head(self.classifier, train, val, self.training)
            console.print(f"head trained: validation AUROC {self.aurocs['head_only']:.4f}")
            self.score("head_only")

    def features_of(self, name: str) -> Tensor:
        """Mean features of a part under the tower as it is, computed once: float (n, channels)."""
        if name not in self.features:
            images, rows = self.datamodule.cache.images, self.datamodule.rows(name)
            self.features[name] = mean_features(self.classifier, images, rows, what=f"features of {name}")
        return self.features[name]

    @torch.inference_mode()
    def score(self, stage: str, calibration: Calibration | None = None) -> None:
        """Keep the probabilities of validation and test."""
        self.classifier.eval()
        self.probability[stage] = {
            name: (calibration or Calibration())
            .probability(self.classifier.logits_of_pooled(self.features_of(name)))
            .numpy()
            for name in _SCORED_SPLITS
            if len(self.datamodule.indices(name))
        }

    def _choose_share(self, start: dict[str, Tensor]) -> None:
        """WiSE-FT: the share of the way from the start with the best validation AUROC, the shortest of equals."""
        end = copy.deepcopy(self.classifier.state_dict())
        best, aurocs = 0.0, {}
        for share in track(_WISE_FT_SHARES, "WiSE-FT", total=len(_WISE_FT_SHARES)):
            self.classifier.load_state_dict(interpolate(start, end, share))
            self.features = {}
            aurocs[share] = self.validated()
            if aurocs[share] > aurocs[best]:
                best = share
        self.aurocs.update({"wise_ft": aurocs[best], "wise_ft_share": best})
        console.print(f"WiSE-FT: {best:.0%} of the way, validation AUROC {aurocs[best]:.4f}")
        self.classifier.load_state_dict(interpolate(start, end, best))

    def _save_head(self, path: Path) -> None:
        tensors = {f"classifier.{name}": value for name, value in self.classifier.state_dict().items()}
        tensors |= {f"auroc.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.aurocs.items()}
        for stage, parts in self.probability.items():
            tensors |= {f"probability.{stage}.{name}": torch.from_numpy(value) for name, value in parts.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(".part")
        save_file({name: value.contiguous() for name, value in tensors.items()}, staged)
        staged.replace(path)

    def _load_head(self, path: Path) -> None:
        weights = {}
        for key, value in load_file(path).items():
            kind, _, name = key.partition(".")
            if kind == "classifier":
                weights[name] = value
            elif kind == "auroc":
                self.aurocs[name] = value.item()
            else:
                stage, _, part = name.partition(".")
                self.probability.setdefault(stage, {})[part] = value.numpy()
        self.classifier.load_state_dict(weights)

    def fit_decision_rule(self, settings: TrustSettings) -> DecisionRule:
        """Calibration, operating point, conformal band and novelty of the classifier as it is."""
        labels = self.datamodule.labels[self.datamodule.indices("val")]
        with torch.inference_mode():
            logits = self.classifier.eval().logits_of_pooled(self.features_of("val"))
        calibration = fit_calibration(logits.clone(), torch.from_numpy(labels))
        probability = calibration.probability(logits).numpy()
        threshold = (
            balanced_point(probability, labels)
            if settings.sensitivity is None
            else operating_point(probability, labels, sensitivity=settings.sensitivity)
        )
        band, coverage = conformal_band(probability, labels, threshold, coverage=settings.coverage)
        if coverage < settings.coverage:
            console.print(
                f"validation is too small to promise a coverage of {settings.coverage:.1%}; {coverage:.1%} is used",
                style="yellow",
            )
        novelty = fit_novelty(self.features_of("train").numpy(), self.features_of("val").numpy())
        return DecisionRule(calibration, threshold, band, coverage, novelty)

    def scores(self, operating_point: float) -> dict[str, dict[str, Scores]]:
        """Split -> stage -> scores; what is served is judged at its operating point, the stages before it at 0.5."""
        return {
            split: {
                stage: Scores(
                    by_split[split],
                    self.datamodule.labels[self.datamodule.indices(split)],
                    self.datamodule.patients[self.datamodule.indices(split)],
                    operating_point if stage == "after" else 0.5,
                )
                for stage, by_split in self.probability.items()
            }
            for split in _SCORED_SPLITS
            if len(self.datamodule.indices(split))
        }


def run(
    data: DataSettings,
    model: ModelConfig,
    training: TrainSettings,
    trust: TrustSettings,
    folder: Path,
    *,
    weights: str | None = None,
    start: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train, evaluate and write everything into `folder`; returns what is in its `metrics.json`."""
    started = time.monotonic()
    datamodule = prepare_data(data)
    experiment = Experiment(datamodule, model, training, folder, weights=weights, start=start)
    experiment.fit()
    training_seconds = time.monotonic() - started
    fitted = experiment.fit_decision_rule(trust)
    experiment.score("after", fitted.calibration)
    stages = experiment.scores(fitted.operating_point)
    figures: dict[str, Figures] = {
        split: {stage: summarise(scores, seed=data.seed) for stage, scores in of_split.items()}
        for split, of_split in stages.items()
    }
    metrics = {
        "trained_on": _describe(datamodule),
        "training": {
            **asdict(training),
            "seconds": round(training_seconds, 1),
            "peak_memory_bytes": peak_memory(),
            "best_validation_auroc": experiment.aurocs,
        },
        "start": [checkpoint_hashes(path) for path in start],
        "zero_shot_seed": zero_shot_seed(start, training.seed),
        "weights": provenance.as_dict() if (provenance := experiment.classifier.provenance) else None,
        "decision": {
            "temperature": fitted.calibration.temperature,
            "bias": fitted.calibration.bias,
            "operating_point": fitted.operating_point,
            "uncertain_band": list(fitted.band),
            "sensitivity_asked": trust.sensitivity,
            "coverage": fitted.coverage,
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
    _write(folder, experiment, ServedModel(experiment.classifier, fitted).eval(), stages, figures, metrics)
    return metrics


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
        "unreadable": len(datamodule.cache.unreadable),
        "near_duplicates": datamodule.near_duplicates,
        "patients_removed_from_training": list(datamodule.splits.leaked_patients),
    }


def _write(
    folder: Path,
    experiment: Experiment,
    served: ServedModel,
    stages: dict[str, dict[str, Scores]],
    figures: dict[str, Figures],
    metrics: dict[str, Any],
) -> None:
    datamodule = experiment.datamodule
    save_splits(
        folder / SPLITS_FILE,
        datamodule.cache.radiographs,
        datamodule.splits,
        datamodule.source.root,
        probability=experiment.probability["after"],
    )
    for split, title in ((VAL, "validation, split by patient"), (TEST, "test")):
        if scores := stages.get(split):
            shown = f"{metrics['trained_on']['folder']}, {title} (n = {len(scores['after'].labels)})"
            roc_picture(scores, figures[split], shown, folder / f"roc_{split}.png")
            confusion_picture(scores["before"], scores["after"], shown, folder / f"confusion_{split}.png")
    if experiment.training.epochs > 0:
        curves_picture(folder / "curves" / "metrics.csv", folder / "curves.png")
        training = experiment.training
        if training.augmentation or training.degradation:
            dataset = datamodule.dataset("train", augmentation=training.augmentation, degradation=training.degradation)
            augmentation_picture(dataset, training.seed, folder / "augmentation.png")
    if datamodule.cache.unreadable:
        lines = [f"{name}\t{reason}" for name, reason in datamodule.cache.unreadable]
        (folder / "unreadable.txt").write_text("\n".join(lines) + "\n")
    (folder / "environment.json").write_text(json.dumps(environment(), indent=2) + "\n")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    val = datamodule.indices("val")
    chosen = val[np.linspace(0, len(val) - 1, min(PARITY_IMAGES, len(val))).astype(int)]
    np.save(checkpoint / PARITY_FILE, datamodule.cache.images[datamodule.cache.rows[chosen]][:, None])
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    save_checkpoint(served, checkpoint, metrics)
    shutil.rmtree(folder / RESUME_FOLDER, ignore_errors=True)
