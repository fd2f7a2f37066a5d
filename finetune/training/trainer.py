"""Training in two stages, both by Lightning: the head on features computed once, then the whole network.

1. head: the tower is frozen, so each radiograph's mean features are computed once, and projection, fine-tuning layer
   and class embeddings are trained on them in seconds.
2. full: everything, on augmented radiographs, the tower at a lower learning rate; early stopping on validation AUROC.

The weights with the best validation AUROC are kept, those of the head stage included. The full stage writes its state
after each epoch; a resumed run ends as if it had never stopped.
"""

from __future__ import annotations

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
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics.classification import BinaryAUROC

from finetune.data.sampling import CachedRadiographs, EpochSampler, class_weights
from finetune.models.classifier import RadiographClassifier
from finetune.models.medclip import semantic_matching_loss
from finetune.run_folder import CURVES_FOLDER, RESUME_FOLDER
from finetune.settings import TrainSettings
from xray_client.console import console, track

from .callbacks import BestWeights, Curves
from .hardware import keep_freed_memory, lightning_precision, rank
from .optim import fixed_modules, freeze, parameter_groups, warm_up_and_cosine

RESUME_FILE = "last.ckpt"  # in the resume folder


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
        if not on_features:
            freeze(classifier.tower, settings.frozen_stages)
        averaging = settings.average > 0 and not on_features
        self.averaged = AveragedModel(classifier, avg_fn=self._average, use_buffers=True) if averaging else None
        if self.averaged is not None:
            self.averaged.requires_grad_(False)
        if settings.compile and not on_features:
            classifier.tower.compile()

    @property
    def scored(self) -> RadiographClassifier:
        """Weights to validate and keep: the running average, or the trained weights themselves."""
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
        """Collect the scores of a batch; the AUROC is over the whole part."""
        logits = self.scored.logits_of_embedding(self.embed(batch[0], self.scored))
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]), on_epoch=True)
        self.auroc.update(logits[:, 1] - logits[:, 0], batch[1])

    def on_validation_epoch_end(self) -> None:
        """Log the AUROC of the epoch."""
        self.log("val_auroc", self.auroc.compute(), prog_bar=True)
        self.auroc.reset()

    def on_train_epoch_start(self) -> None:
        """Keep the batch statistics of frozen stages, and all of them where the settings say so."""
        # Looked up anew: with several GPUs Lightning has replaced the modules by synchronised ones.
        for module in fixed_modules(self.classifier, batch_statistics=self.settings.batch_statistics == "fixed"):
            module.eval()

    def on_train_batch_start(self, *_: object) -> None:
        """Seed the step, so that dropout and prompts depend on seed, step and process alone."""
        torch.manual_seed((self.settings.seed * 1_000_003 + self.global_step) * 4_096 + self.global_rank)

    def on_train_batch_end(self, *_: object) -> None:
        """Update the running average of the weights."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.classifier)

    def _average(self, averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        if not averaged.is_floating_point():
            return current
        n = float(count)
        # A shorter memory in the first steps: a plain decay would remember the start for thousands of steps.
        return torch.lerp(averaged, current, 1 - min(self.settings.average, (1 + n) / (10 + n)))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine."""
        groups = parameter_groups(self.classifier, self.settings, head_only=self.on_features)
        optimizer = torch.optim.AdamW(groups)
        schedule = warm_up_and_cosine(optimizer, max(1, int(self.trainer.estimated_stepping_batches)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_head(
    classifier: RadiographClassifier,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    settings: TrainSettings,
) -> float:
    """Train the layers behind the tower on mean features; leaves the best weights in `classifier`.

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
        DataLoader(_WithoutSeed(TensorDataset(*train)), batch_size=batch, sampler=sampler),
        DataLoader(TensorDataset(*val), batch_size=4096),
    )
    task = FineTuning(classifier, settings, weights=class_weights(labels, settings.balance), on_features=True)
    best = BestWeights()
    # Steps of a millisecond: several threads cost more than they save, most of all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = _trainer(settings, [best], max_epochs=settings.head_epochs, accelerator="cpu", logger=False)
        _fit(trainer, task, loaders)
    finally:
        torch.set_num_threads(threads)
    classifier.load_state_dict(best.weights)
    return best.auroc


class _WithoutSeed(Dataset[tuple[Tensor, ...]]):
    """Dataset of features that takes the sampler's (index, seed) pairs; features are not augmented."""

    def __init__(self, dataset: TensorDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, drawn: tuple[int, int]) -> tuple[Tensor, ...]:
        features: tuple[Tensor, ...] = self.dataset[drawn[0]]
        return features

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
    """Train all layers on augmented radiographs; leaves the best weights in `classifier`, returns their AUROC.

    Resumes an interrupted run if `folder` holds its state. Of several processes, only the first returns.

    Args:
        classifier: Changed in place.
        train: Radiographs to draw from.
        val: Radiographs to validate on.
        settings: See `TrainSettings`.
        folder: Run folder for curves, logs and the state to resume from; None = nowhere.
        callbacks: Further callbacks of the trainer.
    """
    processes = settings.devices * settings.nodes
    workers = settings.workers if settings.workers >= 0 else min(4, (os.cpu_count() or 1) // 4)
    common: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    batch = max(1, settings.batch_size // processes)
    sampler = EpochSampler(train.labels, balance=settings.balance, seed=settings.seed, rank=rank(), processes=processes)
    # Batch statistics of a single last radiograph would be noise.
    loaders = (
        DataLoader(train, batch_size=batch, sampler=sampler, drop_last=len(sampler) > batch, **common),
        DataLoader(val, batch_size=2 * settings.batch_size, **common),
    )
    keep_freed_memory()
    weights = class_weights(train.labels, settings.balance)
    task = FineTuning(classifier, settings, weights=weights, on_features=False)
    best = BestWeights()
    shown: list[Callback] = [RichProgressBar()] if console.is_terminal else []
    state: Path | None = None
    if folder:
        state = folder / RESUME_FOLDER / RESUME_FILE
        save = ModelCheckpoint(
            state.parent, state.stem, save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True
        )
        shown += [Curves(folder / CURVES_FOLDER), save]
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
        logger=TensorBoardLogger(folder, name="", version=CURVES_FOLDER) if folder else False,
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
def mean_features(
    classifier: RadiographClassifier, images: NDArray[np.uint8], rows: NDArray[np.int64], *, what: str
) -> Tensor:
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
