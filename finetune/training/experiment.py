"""Training stages of one run (zero-shot, head, all layers) and the scores after each."""

from __future__ import annotations

import copy
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from torch import Tensor

from finetune.data.datamodule import DataModule
from finetune.data.records import TEST, TRAIN, VAL
from finetune.data.sampling import CachedRadiographs
from finetune.evaluation.metrics import Scores
from finetune.models.checkpoint import mean_weights
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
from finetune.run_folder import RESUME_FOLDER
from finetune.settings import RANDOM_WEIGHTS, AnswerSettings, ModelSettings, TrainSettings
from xray_client.console import console, track
from xray_client.files import replacing

from .hardware import rank
from .trainer import interpolate, mean_features, train_full, train_head

HEAD_FILE = "head.safetensors"  # in the resume folder
_SCORED_SPLITS = (VAL, TEST)
_WISE_FT_SHARES = tuple(i / 10 for i in range(11))


class Experiment:
    """A run under way: its classifier, and its scores at each stage.

    Args:
        datamodule: Radiographs to train and score on.
        model: Network and the weights it starts from; of several checkpoints, the mean of their weights (a model soup,
            Wortsman et al. 2022), which means something for runs that had the same start.
        training: Course of the training.
        folder: Run folder; holds the state to go on from while the run is under way. None = nowhere.

    Raises:
        CheckpointError: A checkpoint cannot be read, or is of another network.
    """

    def __init__(
        self, datamodule: DataModule, model: ModelSettings, training: TrainSettings, folder: Path | None = None
    ) -> None:
        L.seed_everything(training.seed, verbose=False)
        self.datamodule, self.training, self.folder = datamodule, training, folder
        config = ModelConfig(model.architecture, dropout=model.dropout, preprocessing=datamodule.preprocessing)
        self.classifier = RadiographClassifier(
            config, weights=None if model.weights == RANDOM_WEIGHTS else model.weights
        )
        if model.start:
            self.classifier.load_state_dict(mean_weights(model.start, config))
        self.probability: dict[str, dict[str, NDArray[np.float32]]] = {}  # stage -> part -> (n,)
        self.aurocs: dict[str, float] = {}  # best on validation, as training saw it
        self.features: dict[str, Tensor] = {}

    def fit(self, *, callbacks: Any = ()) -> None:
        """Run the stages zero-shot, head and all layers; resume where an interrupted run stopped."""
        saved = self.folder / RESUME_FOLDER / HEAD_FILE if self.folder else None
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
                    TRAIN, augmentation=self.training.augmentation, degradation=self.training.degradation
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
        """Radiographs that choose the epoch: the validation split, degraded if the settings ask for it."""
        plain = self.datamodule.dataset(VAL)
        if not self.training.degraded_validation:
            return plain
        varied = self.datamodule.dataset(VAL, degradation=self.training.degraded_validation)
        images = [varied[i, self.training.seed + i][0][0].numpy() for i in range(len(varied))]
        return CachedRadiographs(np.stack(images), np.arange(len(images)), plain.labels)

    def validated(self) -> float:
        """AUROC of the current classifier on the radiographs that choose the epoch."""
        degraded = self.training.degraded_validation > 0
        pooled = (
            mean_features(self.classifier, self.validation.images, self.validation.rows, what="degraded validation")
            if degraded
            else self.features_of(VAL)
        )
        with torch.inference_mode():
            logits = self.classifier.eval().logits_of_pooled(pooled)
        return float(roc_auc_score(self.validation.labels, logits[:, 1] - logits[:, 0]))

    def _fit_head(self) -> None:
        self.score("before")
        if self.training.head_epochs > 0:
            train, val = (
                (self.features_of(name), torch.from_numpy(self.datamodule.labels[self.datamodule.indices(name)]))
                for name in (TRAIN, VAL)
            )
            self.aurocs["head_only"] = train_head(self.classifier, train, val, self.training)
            console.print(f"head trained: validation AUROC {self.aurocs['head_only']:.4f}")
            self.score("head_only")

    def features_of(self, name: str) -> Tensor:
        """Mean features of a split under the current tower, computed once: float (n, channels)."""
        if name not in self.features:
            images, rows = self.datamodule.cache.images, self.datamodule.rows(name)
            self.features[name] = mean_features(self.classifier, images, rows, what=f"features of {name}")
        return self.features[name]

    @torch.inference_mode()
    def score(self, stage: str, calibration: Calibration | None = None) -> None:
        """Store the probabilities of a stage on validation and test."""
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
        for stage, by_split in self.probability.items():
            tensors |= {f"probability.{stage}.{name}": torch.from_numpy(value) for name, value in by_split.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as unfinished:
            save_file({name: value.contiguous() for name, value in tensors.items()}, unfinished)

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

    def fit_decision_rule(self, settings: AnswerSettings) -> DecisionRule:
        """Fit calibration, operating point, conformal band and novelty of the current classifier."""
        labels = self.datamodule.labels[self.datamodule.indices(VAL)]
        with torch.inference_mode():
            logits = self.classifier.eval().logits_of_pooled(self.features_of(VAL))
        calibration = fit_calibration(logits.clone(), torch.from_numpy(labels))
        probability = calibration.probability(logits).numpy()
        threshold = (
            balanced_point(probability, labels)
            if settings.balanced_point
            else operating_point(probability, labels, sensitivity=settings.sensitivity)
        )
        band, coverage = conformal_band(probability, labels, threshold, coverage=settings.coverage)
        if coverage < settings.coverage:
            console.print(
                f"validation is too small to promise a coverage of {settings.coverage:.1%}; {coverage:.1%} is used",
                style="yellow",
            )
        novelty = fit_novelty(self.features_of(TRAIN).numpy(), self.features_of(VAL).numpy())
        return DecisionRule(calibration, threshold, band, coverage, novelty)

    def scores(self, operating_point: float) -> dict[str, dict[str, Scores]]:
        """Split -> stage -> scores; the final stage at its operating point, the stages before it at 0.5."""
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
