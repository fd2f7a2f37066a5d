"""Callbacks of the trainer: best weights, curves, and progress in the log."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from finetune.run_folder import CURVES_FILE
from xray_client.console import console

_COLUMNS = ("epoch", "loss", "val_loss", "val_auroc", "learning_rate")


class BestWeights(Callback):
    """Keep the weights with the highest validation AUROC in memory and, for a resumed run, in the trainer's checkpoint.

    Lightning's ModelCheckpoint would keep them in a file of its own, which a killed process leaves one epoch ahead of
    the state to resume from, and which is lost when the run folder has been moved in between. It would also need a
    folder in the head stage and in trials of a search, which write nothing.
    """

    def __init__(self) -> None:
        self.auroc, self.epoch = -1.0, -1
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare with the best so far."""
        auroc = float(trainer.callback_metrics["val_auroc"])
        if auroc > self.auroc:
            self.auroc, self.epoch = auroc, trainer.current_epoch
            self.weights = copy.deepcopy(pl_module.scored.state_dict())  # type: ignore[union-attr]

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""
        return {"auroc": self.auroc, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume."""
        self.auroc, self.epoch, self.weights = (state_dict[name] for name in ("auroc", "epoch", "weights"))


class Curves(Callback):
    """Write one row per epoch to a CSV file, and one line to a log without progress bars.

    Lightning's CSVLogger deletes the rows of earlier epochs when a run is resumed, and writes training and validation
    in separate rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row; of several processes, only the first writes."""
        if not trainer.is_global_zero:
            return
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.rows.append({"epoch": trainer.current_epoch + 1, **now, "learning_rate": rate})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / CURVES_FILE).open("w", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)
        if not console.is_terminal:
            console.print(
                f"epoch {trainer.current_epoch + 1}: loss {now['loss']:.4f}, validation AUROC {now['val_auroc']:.4f}"
            )

    def state_dict(self) -> dict[str, Any]:
        """State to resume from."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume."""
        self.rows = state_dict["rows"]
