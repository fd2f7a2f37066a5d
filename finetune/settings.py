"""What a run can be told: four small records, saved with each run as `settings.json`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BALANCES = ("sampler", "loss", "undersample", "none")
OBJECTIVES = ("supervised", "contrastive", "both")


@dataclass(frozen=True)
class DataSettings:
    """What to train on.

    Args:
        source: Folder of radiographs, table, or name of a set, as `finetune.data.sources` says.
        cache: Folder of prepared images.
        val_fraction: Share of patients to validate on.
        geometry: "pad", "stretch" or "auto".
        seed: Of the split.
        splits: `splits.csv` of an earlier run to use again; None = draw anew.
    """

    source: Path
    cache: Path
    val_fraction: float = 0.15
    geometry: str = "auto"
    seed: int = 0
    splits: Path | None = None


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Args:
        epochs: At most this many passes of the full stage; 0 = none.
        head_epochs: Passes of the head stage, over features; 0 = none. Both 0 = the zero-shot model.
        patience: Stop after this many epochs without a better validation AUROC.
        batch_size: Radiographs per step, of all processes together.
        learning_rate: Of everything behind the tower.
        tower_learning_rate: Of the tower's last stage.
        layer_decay: Each stage of the tower learns this much more slowly than the one behind it; 1 = all alike.
        frozen_stages: So many first stages of the tower stay as they are; 0 = none.
        batch_statistics: "fixed" keeps those of batch normalisation as they are, "learnt" updates them.
        weight_decay: AdamW's, on weight matrices only.
        label_smoothing: 0 = off.
        gradient_clip: Longest gradient, Euclidean norm; 0 = off.
        average: Decay of the running average of the weights that is validated and kept; 0 = off.
        balance: One of BALANCES; how rare and frequent class get the same say.
        objective: One of OBJECTIVES.
        augmentation: Strength; 1 = as documented in `finetune.data.augment`, 0 = off.
        degradation: How often radiographs are degraded as other archives would; 1 = as documented there, 0 = never.
        degraded_validation: How often the radiographs that choose the epoch are degraded, each always in the same way;
            0 = never. Calibration and operating point never see degraded ones.
        wise_ft: Interpolate between start and end of the full stage (WiSE-FT), the share chosen on validation.
        precision: "auto", "32" or "bf16"; auto takes bfloat16 where it is faster.
        compile: Run the tower through torch.compile.
        workers: Processes that augment; -1 = chosen from the cores.
        devices: Processes that train together on this machine, one a GPU (or a share of the CPU's cores).
        nodes: Machines that train together.
        seed: Of everything that is drawn.
    """

    epochs: int = 10
    head_epochs: int = 40
    patience: int = 3
    batch_size: int = 32
    learning_rate: float = 1e-3
    tower_learning_rate: float = 2e-4
    layer_decay: float = 1.0
    frozen_stages: int = 0
    batch_statistics: str = "fixed"
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    gradient_clip: float = 1.0
    average: float = 0.0
    balance: str = "sampler"
    objective: str = "supervised"
    augmentation: float = 1.0
    degradation: float = 1.0
    degraded_validation: float = 0.0
    wise_ft: bool = False
    precision: str = "auto"
    compile: bool = False
    workers: int = -1
    devices: int = 1
    nodes: int = 1
    seed: int = 0


@dataclass(frozen=True)
class TrustSettings:
    """What the answer promises on validation.

    Args:
        sensitivity: Of the operating point; None = where it equals specificity.
        coverage: Of the conformal sets.
    """

    sensitivity: float | None = 0.98
    coverage: float = 0.95
