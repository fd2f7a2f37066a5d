"""Training in two stages, both by Lightning: the head on features computed once, then the whole network.

1. head: the tower is frozen, so each radiograph's mean features are computed once, and projection, fine-tuning layer
   and class embeddings are trained on them in seconds.
2. full: everything, on augmented radiographs, the tower at a lower learning rate; early stopping on validation AUROC.

The best weights by validation AUROC are kept, those of the head stage included. The full stage writes all that it needs
to go on after each epoch; a run that goes on ends as if it had never stopped.
"""

from __future__ import annotations

import copy
import csv
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import BinaryAUROC

from finetune.data.sampling import CachedRadiographs, EpochSampler, class_weights
from finetune.models.classifier import RadiographClassifier
from finetune.models.medclip import semantic_matching_loss
from finetune.settings import TrainSettings
from xray_client.console import console, track

from .hardware import keep_freed_memory, lightning_precision, rank
from .optim import freeze, parameter_groups, warm_up_and_cosine

RESUME_FILE = "last"
_CURVES = ("epoch", "loss", "val_loss", "val_auroc", "learning_rate")


class FineTuning(L.LightningModule):
    """One stage of training; the classifier is shared between stages.

    Args:
        classifier: Trained in place.
        settings: See `TrainSettings`.
        weights: Weight of each class in the loss, float (2,); None = alike.
        on_features: The inputs are mean features, the tower is not touched.
    """

    class_weights: Tensor | None

    def __init__(
        self, classifier: RadiographClassifier, settings: TrainSettings, *, weights: Tensor | None, on_features: bool
    ) -> None:
        super().__init__()
        self.classifier, self.settings, self.on_features = classifier, settings, on_features
        self.auroc = BinaryAUROC(sync_on_compute=False)  # each process validates on everything
        self.register_buffer("class_weights", weights, persistent=False)
        self.prompts = classifier.prompt_embeddings
        # Contrast is with fixed prompts: what they mean must not drift to meet the radiographs.
        for fixed in (classifier.class_embeddings, classifier.class_bias):
            fixed.requires_grad_(settings.objective != "contrastive")
        self.fixed = [] if on_features else freeze(classifier.tower, settings.frozen_stages)
        if settings.batch_statistics == "fixed":
            self.fixed += [m for m in classifier.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        averaging = settings.average > 0 and not on_features
        self.averaged = AveragedModel(classifier, avg_fn=self._average, use_buffers=True) if averaging else None
        if self.averaged is not None:
            self.averaged.requires_grad_(False)
        if settings.compile and not on_features:
            classifier.tower.compile()

    @property
    def scored(self) -> RadiographClassifier:
        """What is validated and kept: the running average of the weights, or the weights themselves."""
        return cast(RadiographClassifier, self.averaged.module) if self.averaged is not None else self.classifier

    def embed(self, inputs: Tensor, classifier: RadiographClassifier) -> Tensor:
        """Radiographs (n, 1, s, s), or mean features (n, channels) in the head stage -> embeddings (n, d), float32."""
        pooled = inputs if self.on_features else classifier.features(inputs).mean(dim=(2, 3))
        # bfloat16 has 8 bits of precision: enough for convolutions, too few to rank radiographs by.
        with torch.autocast(self.device.type, enabled=False):
            return classifier.embed_pooled(pooled.float())

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Loss of one batch."""
        inputs, labels = batch
        embedding = self.embed(inputs, self.classifier)
        loss = embedding.new_zeros(())
        if self.settings.objective != "contrastive":
            loss = loss + nn.functional.cross_entropy(
                self.classifier.logits_of_embedding(embedding),
                labels,
                weight=self.class_weights,
                label_smoothing=self.settings.label_smoothing,
            )
        if self.settings.objective != "supervised":
            loss = loss + self._contrast(embedding, labels)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def _contrast(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """MedCLIP's loss between the radiographs and a prompt drawn for each; prompts of its own class all match."""
        drawn = [self.prompts[c][torch.randint(len(self.prompts[c]), ())] for c in labels.tolist()]
        same_class = (labels[:, None] == labels[None]).to(embedding.dtype)
        return semantic_matching_loss(
            nn.functional.normalize(embedding, dim=1),
            torch.stack(drawn).to(embedding),
            same_class,
            self.classifier.scale,
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Collect scores; the metric is of the whole part."""
        logits = self.scored.logits_of_embedding(self.embed(batch[0], self.scored))
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), on_epoch=True)
        self.auroc.update(logits[:, 1] - logits[:, 0], batch[1])

    def on_validation_epoch_end(self) -> None:
        """AUROC of the epoch."""
        self.log("val_auroc", self.auroc.compute(), prog_bar=True)
        self.auroc.reset()

    def on_train_epoch_start(self) -> None:
        """Frozen stages keep their batch statistics."""
        for module in self.fixed:
            module.eval()

    def on_train_batch_start(self, *_: object) -> None:
        """What is drawn in a step, such as dropout, depends on seed, step and process alone."""
        torch.manual_seed((self.settings.seed * 1_000_003 + self.global_step) * 4_096 + self.global_rank)

    def on_train_batch_end(self, *_: object) -> None:
        """Follow the weights."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.classifier)

    def _average(self, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        n = float(count)
        # The start counts for little: a plain decay would remember it for thousands of steps.
        return torch.lerp(averaged, current, 1 - min(self.settings.average, (1 + n) / (10 + n)))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine."""
        groups = parameter_groups(self.classifier, self.settings, head_only=self.on_features)
        optimizer = torch.optim.AdamW(groups)
        factor = warm_up_and_cosine(max(1, int(self.trainer.estimated_stepping_batches)))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KeepBest(Callback):
    """Remembers the weights with the highest validation AUROC and the curves, and tells the log how each epoch went."""

    def __init__(self, curves: Path | None) -> None:
        self.curves = curves
        self.auroc, self.epoch = -1.0, -1
        self.weights: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best so far."""
        auroc = float(trainer.callback_metrics["val_auroc"])
        if auroc > self.auroc:
            self.auroc, self.epoch = auroc, trainer.current_epoch
            self.weights = copy.deepcopy(pl_module.scored.state_dict())  # type: ignore[union-attr]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A row of the curves; a line where no progress bar says it."""
        if self.curves is None or not trainer.is_global_zero:
            return
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.history.append({"epoch": trainer.current_epoch + 1, **now, "learning_rate": rate})
        self.curves.mkdir(parents=True, exist_ok=True)
        with (self.curves / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, _CURVES, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.history)
        if not console.is_terminal:
            console.print(
                f"epoch {trainer.current_epoch + 1}: loss {now['loss']:.4f}, validation AUROC {now['val_auroc']:.4f}"
            )

    def state_dict(self) -> dict[str, Any]:
        """For a run that goes on later."""
        return {"auroc": self.auroc, "epoch": self.epoch, "weights": self.weights, "history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, value in state_dict.items():
            setattr(self, name, value)


def train_head(
    classifier: RadiographClassifier,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    settings: TrainSettings,
) -> float:
    """Train what is behind the tower on mean features; leaves the best weights in `classifier`.

    Args:
        classifier: Changed in place.
        train: Mean features float (n, channels) and labels (n,).
        val: The same of the validation part.
        settings: See `TrainSettings`.

    Returns:
        Best validation AUROC.
    """
    labels = train[1].numpy()
    sampler = EpochSampler(labels, balance=settings.balance, seed=settings.seed)
    batch = min(256, max(16, len(labels) // 8))
    loaders = (
        DataLoader(_Undrawn(TensorDataset(*train)), batch_size=batch, sampler=sampler),
        DataLoader(TensorDataset(*val), batch_size=4096),
    )
    task = FineTuning(classifier, settings, weights=class_weights(labels, settings.balance), on_features=True)
    best = KeepBest(None)
    # Steps of a millisecond: sharing them among threads costs more than it saves, most of all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = _trainer(settings, [best], max_epochs=settings.head_epochs, accelerator="cpu", logger=False)
        _fit(trainer, task, loaders)
    finally:
        torch.set_num_threads(threads)
    classifier.load_state_dict(best.weights)
    return best.auroc


class _Undrawn(Dataset[tuple[Tensor, ...]]):
    """Features have no variation: the seed that is drawn with each index is left unused."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, ...]:
        return self.dataset[drawn[0]]

    def __len__(self) -> int:
        return len(self.dataset)


def train_full(
    classifier: RadiographClassifier,
    train: CachedRadiographs,
    val: CachedRadiographs,
    settings: TrainSettings,
    folder: Path | None,
    *,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Train everything on augmented radiographs; leaves the best weights in `classifier`, returns their AUROC.

    Goes on where an interrupted run stopped if `folder` holds its state. Of several processes, only the first returns.

    Args:
        classifier: Changed in place.
        train: Radiographs to draw from.
        val: Radiographs to validate on.
        settings: See `TrainSettings`.
        folder: Where curves, logs and the state for going on are written; None = nowhere.
        callbacks: Told about every epoch as well.
    """
    processes = settings.devices * settings.nodes
    workers = settings.workers if settings.workers >= 0 else min(4, (os.cpu_count() or 1) // 4)
    common: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    batch = max(1, settings.batch_size // processes)
    sampler = EpochSampler(train.labels, balance=settings.balance, seed=settings.seed, rank=rank(), processes=processes)
    # Batch statistics of a lone last radiograph would be noise.
    loaders = (
        DataLoader(train, batch_size=batch, sampler=sampler, drop_last=len(sampler) > batch, **common),
        DataLoader(val, batch_size=2 * settings.batch_size, **common),
    )
    keep_freed_memory()
    weights = class_weights(train.labels, settings.balance)
    task = FineTuning(classifier, settings, weights=weights, on_features=False)
    best = KeepBest(folder / "curves" if folder else None)
    shown: list[Callback] = [RichProgressBar()] if console.is_terminal else []
    state: Path | None = None
    if folder:
        state = folder / "resume" / f"{RESUME_FILE}.ckpt"
        shown.append(
            ModelCheckpoint(
                state.parent,
                RESUME_FILE,
                save_top_k=1,
                enable_version_counter=False,
                save_on_train_epoch_end=True,
            )
        )
    trainer = _trainer(
        settings,
        [best, EarlyStopping("val_auroc", mode="max", patience=settings.patience), *shown, *callbacks],
        max_epochs=settings.epochs,
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy="ddp" if processes > 1 else "auto",
        sync_batchnorm=processes > 1 and torch.cuda.is_available(),
        precision=lightning_precision(settings.precision),
        logger=TensorBoardLogger(folder, name="", version="curves") if folder else False,
        enable_progress_bar=console.is_terminal,
    )
    _fit(trainer, task, loaders, resume_from=state if state and state.is_file() else None)
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the first process has the result; the others were there to train
    classifier.load_state_dict(best.weights)
    return best.auroc


def _trainer(settings: TrainSettings, callbacks: list[Callback], **options: Any) -> L.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    defaults: dict[str, Any] = {
        "devices": 1,
        "gradient_clip_val": settings.gradient_clip or None,
        "log_every_n_steps": 10,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "use_distributed_sampler": False,  # `EpochSampler` shares the draws out
    }
    with warnings.catch_warnings():
        # Lightning's advice on worker counts and logging intervals is not for the person who trains.
        warnings.filterwarnings("ignore", module="lightning")
        return L.Trainer(callbacks=callbacks, **{**defaults, **options})


def _fit(
    trainer: L.Trainer,
    task: FineTuning,
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
    *,
    resume_from: Path | None = None,
) -> None:
    task.train()  # the trainer leaves each module in the mode it finds, and scoring left them in evaluation
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer.fit(task, *loaders, ckpt_path=resume_from, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt


@torch.no_grad()
def mean_features(classifier: RadiographClassifier, images: np.ndarray, rows: np.ndarray, *, what: str) -> Tensor:
    """Mean features of cached radiographs, not augmented, in float32: (n, channels)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = classifier.eval().to(device)
    starts = range(0, len(rows), 64)
    batches = [
        classifier.features(torch.from_numpy(images[rows[start : start + 64]])[:, None].to(device))
        .mean(dim=(2, 3))
        .cpu()
        for start in track(starts, what, total=len(starts))
    ]
    classifier.cpu()
    return torch.cat(batches) if batches else torch.empty(0, classifier.projection.in_features)


def interpolate(start: dict[str, Tensor], end: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights between two points, `share` of the way from `start` to `end` (WiSE-FT, Wortsman et al. 2022)."""
    return {
        name: torch.lerp(start[name], value, share) if value.is_floating_point() else value
        for name, value in end.items()
    }
