"""Training in two stages, both by Lightning: the head on features computed once, then the whole network.

1. head: the tower is frozen, so each radiograph's mean features are computed once, and projection, fine-tuning layer
   and class embeddings are trained on them in seconds.
2. full: everything, on augmented radiographs, the tower at a lower learning rate; early stopping on validation AUROC.

The best weights by validation AUROC are kept, those of the head stage included.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchmetrics.classification import BinaryAUROC

from xray_build.console import console, track

from .augment import training_augmentation
from .model import RadiographClassifier


@dataclass(frozen=True)
class TrainSettings:
    """How to train; saved with the run.

    Args:
        epochs: At most this many passes of the full stage; 0 = none.
        head_epochs: Passes of the head stage, over features; 0 = none. Both 0 = the zero-shot model.
        patience: Stop after this many epochs without a better validation AUROC.
        batch_size: Radiographs per step.
        learning_rate: Of everything behind the tower.
        tower_learning_rate: Of the tower.
        weight_decay: AdamW's, on weight matrices only.
        label_smoothing: 0 = off.
        precision: "auto", "32" or "bf16"; auto takes bfloat16 where the processor has instructions for it.
        workers: Processes that augment; -1 = chosen from the cores.
        seed: Of everything that is drawn.
    """

    epochs: int = 10
    head_epochs: int = 40
    patience: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3
    tower_learning_rate: float = 2e-4
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    precision: str = "auto"
    workers: int = -1
    seed: int = 0


class CachedRadiographs(Dataset[tuple[Tensor, int]]):
    """Rows of the cache with their labels, augmented when asked: (uint8 (1, s, s), label)."""

    def __init__(self, images: np.ndarray, rows: np.ndarray, labels: np.ndarray, *, augment: bool) -> None:
        self.images, self.rows, self.labels = images, rows, labels
        self.transform = training_augmentation(images.shape[-1]) if augment else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(self.images[self.rows[index]].copy())[None]
        return (self.transform(image) if self.transform else image), int(self.labels[index])


class FineTuning(L.LightningModule):
    """One stage of training; the classifier is shared between stages."""

    def __init__(self, classifier: RadiographClassifier, settings: TrainSettings, *, on_features: bool) -> None:
        super().__init__()
        self.classifier, self.settings, self.on_features = classifier, settings, on_features
        self.auroc = BinaryAUROC()

    def forward(self, inputs: Tensor) -> Tensor:
        """Radiographs (n, 1, s, s), or mean features (n, channels) in the head stage -> logits (n, 2) in float32."""
        pooled = inputs if self.on_features else self.classifier.features(inputs).mean(dim=(2, 3))
        # bfloat16 has 8 bits of precision: enough for convolutions, too few to rank radiographs by.
        with torch.autocast(self.device.type, enabled=False):
            return self.classifier.logits_of_pooled(pooled.float())

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Cross-entropy of one batch."""
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=self.settings.label_smoothing)
        self.log("loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """Collect scores; the metric is of the whole part."""
        logits = self(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), on_epoch=True)
        self.auroc.update(logits[:, 1] - logits[:, 0], batch[1])

    def on_validation_epoch_end(self) -> None:
        """AUROC of the epoch."""
        self.log("val_auroc", self.auroc.compute(), prog_bar=True)
        self.auroc.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW; one warm-up of a twentieth of the steps, then a cosine down to nothing."""
        settings, head = self.settings, self.classifier.head_parameters()
        groups = _decay_groups(head, settings.learning_rate, settings.weight_decay)
        if not self.on_features:
            tower = list(self.classifier.tower.parameters())
            groups += _decay_groups(tower, settings.tower_learning_rate, settings.weight_decay)
        optimizer = torch.optim.AdamW(groups)
        total = max(1, int(self.trainer.estimated_stepping_batches))
        warm_up = max(1, total // 20)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class KeepBest(Callback):
    """Remembers the weights with the highest validation AUROC, and tells the log how each epoch went."""

    def __init__(self, stage: str) -> None:
        self.stage, self.auroc, self.epoch = stage, -1.0, -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best so far."""
        auroc = float(trainer.callback_metrics["val_auroc"])
        if auroc > self.auroc:
            self.auroc, self.epoch = auroc, trainer.current_epoch
            self.weights = copy.deepcopy(pl_module.classifier.state_dict())  # type: ignore[union-attr]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line an epoch where no progress bar says it."""
        if self.stage == "full" and not console.is_terminal:
            now = {name: float(value) for name, value in trainer.callback_metrics.items()}
            console.print(
                f"epoch {trainer.current_epoch + 1}: loss {now['loss']:.4f}, validation AUROC {now['val_auroc']:.4f}"
            )


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
    batch = min(256, max(16, len(train[1]) // 8))
    loaders = (
        DataLoader(TensorDataset(*train), batch_size=batch, sampler=_balanced(train[1].numpy(), settings.seed)),
        DataLoader(TensorDataset(*val), batch_size=4096),
    )
    task = FineTuning(classifier, settings, on_features=True)
    # Steps of a millisecond: sharing them among threads costs more than it saves, most of all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _fit(task, loaders, settings, epochs=settings.head_epochs, stage="head", folder=None)
    finally:
        torch.set_num_threads(threads)


def train_full(
    classifier: RadiographClassifier,
    train: CachedRadiographs,
    val: CachedRadiographs,
    settings: TrainSettings,
    folder: Path,
) -> float:
    """Train everything on augmented radiographs; leaves the best weights in `classifier`, returns their AUROC."""
    workers = settings.workers if settings.workers >= 0 else min(4, (os.cpu_count() or 1) // 4)
    common = {"num_workers": workers, "persistent_workers": workers > 0}
    loaders = (
        DataLoader(
            train,
            batch_size=settings.batch_size,
            sampler=_balanced(train.labels, settings.seed),
            drop_last=len(train) > settings.batch_size,  # batch statistics of a lone last radiograph would be noise
            **common,  # type: ignore[arg-type]
        ),
        DataLoader(val, batch_size=2 * settings.batch_size, **common),  # type: ignore[arg-type]
    )
    keep_freed_memory()
    task = FineTuning(classifier, settings, on_features=False)
    return _fit(task, loaders, settings, epochs=settings.epochs, stage="full", folder=folder)


def _fit(
    task: FineTuning,
    loaders: tuple[DataLoader[Any], DataLoader[Any]],
    settings: TrainSettings,
    *,
    epochs: int,
    stage: str,
    folder: Path | None,
) -> float:
    full = stage == "full"
    best = KeepBest(stage)
    callbacks: list[Callback] = [
        best,
        EarlyStopping("val_auroc", mode="max", patience=settings.patience if full else epochs),
    ]
    if full and console.is_terminal:
        callbacks.append(RichProgressBar())
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning's advice on worker counts and logging intervals is not for the person who trains.
        warnings.filterwarnings("ignore", module="lightning")
        trainer = L.Trainer(
            max_epochs=epochs,
            accelerator="auto" if full else "cpu",
            devices=1,
            precision=lightning_precision(settings.precision) if full else "32-true",  # type: ignore[arg-type]
            gradient_clip_val=1.0,
            callbacks=callbacks,
            logger=CSVLogger(folder, name="", version="curves") if folder else False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=full and console.is_terminal,
        )
        trainer.fit(task, *loaders)
    if trainer.interrupted:
        raise KeyboardInterrupt
    task.classifier.load_state_dict(best.weights)
    return best.auroc


def _balanced(labels: np.ndarray | Sequence[int], seed: int) -> WeightedRandomSampler:
    """Draw each class equally often, with replacement: an epoch has as many radiographs as the set."""
    counts = np.bincount(labels)
    weights = (1.0 / counts)[np.asarray(labels)]
    return WeightedRandomSampler(weights.tolist(), len(weights), generator=torch.Generator().manual_seed(seed))


def _decay_groups(parameters: Sequence[nn.Parameter], rate: float, decay: float) -> list[dict[str, object]]:
    """Weight decay pulls on matrices and kernels; norms, biases and scales are left alone."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of giving it back to the kernel.

    A step frees and takes hundreds of megabytes of activations again; without this, a fifth to a third of a training
    step on a CPU goes into page faults. Does nothing with another C library.
    """
    m_trim_threshold, m_mmap_threshold, large = -1, -3, 2**31 - 1
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_trim_threshold, large)
        mallopt(m_mmap_threshold, large)


def lightning_precision(name: str) -> str:
    """Lightning's name of a precision; "auto" takes bfloat16 where hardware has it."""
    if name == "auto":
        name = "bf16" if _has_bfloat16() else "32"
    return {"32": "32-true", "bf16": "bf16-mixed"}[name]


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


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
