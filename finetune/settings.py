"""Settings of a run. Each option is declared here once: default, range or choices, and help.

`finetune.command_line` makes the options from these dataclasses, `settings.json` in a run folder is written from them,
and `finetune.settings_file` reads it back. A settings object checks itself when it is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from .data.labels import LABELS_HELP, LabelNames
from .errors import SettingsError
from .options import Checked, kinds, option

ARCHITECTURES = ("medclip-lite", "medclip-vit", "medclip-resnet")
BALANCES = ("sampler", "loss", "undersample", "none")
OBJECTIVES = ("supervised", "contrastive", "both")
RANDOM_WEIGHTS = "random"


def _seed() -> Any:
    return option(0, help="Seed of split, initial weights, sampling and augmentation.", common=True)


@dataclass(frozen=True)
class DataSettings(Checked):
    """Radiographs and their split."""

    data: Path = option(
        help="Radiographs to train on: a folder with {train,val,test}/{NORMAL,PNEUMONIA} or {NORMAL,PNEUMONIA}; a "
        "table (CSV) with path, label and, where known, patient and split; or pneumoniamnist:224.",
        common=True,
    )
    labels: str | None = option(None, help=LABELS_HELP, common=True)
    conflicts: str = option(
        "stop",
        help="Copies of one radiograph that carry both labels: stop and name them, or drop all of them.",
        choices=("stop", "drop"),
    )
    splits: Path | None = option(
        None, help="splits.csv of an earlier run, to use its split again instead of drawing one.", common=True
    )
    val_fraction: float = option(
        0.15,
        help="Share of the patients held out for validation, where the data has no split of its own.",
        minimum=0.02,
        maximum=0.5,
    )
    geometry: str = option(
        "auto",
        help="Fitting of a radiograph into the square: pad keeps the aspect ratio, as MedCLIP does; stretch does not; "
        "auto pads unless all images are 224 x 224 already.",
        choices=("auto", "pad", "stretch"),
    )
    seed: int = _seed()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.label_names()  # an invalid list is noticed before any work

    def label_names(self) -> LabelNames:
        """Classes of the names of folders."""
        return LabelNames.parse(self.labels)


@dataclass(frozen=True)
class ModelSettings(Checked):
    """Network and the weights it starts from."""

    architecture: str = option(
        "medclip-lite",
        help="Network: medclip-lite trains on a CPU; medclip-vit and medclip-resnet are MedCLIP's own.",
        flag="model",
        choices=ARCHITECTURES,
        common=True,
    )
    weights: str | None = option(
        None,
        help="MedCLIP's weights, required by its own networks: a zip, pytorch_model.bin, folder or safetensors file; "
        "`official` downloads them, `random` starts from scratch.",
        common=True,
    )
    start: tuple[Path, ...] = option(
        (),
        help="Checkpoint to start from instead of zero-shot: a run, a checkpoint folder, or `reference`. Repeatable: "
        "the mean of the weights of runs that had the same start (with --epochs 0 --head-epochs 0, nothing else is "
        "trained).",
        common=True,
    )
    dropout: float = option(0.2, help="Dropout on the embedding while training (0 = off).", minimum=0, maximum=0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture == "medclip-lite" and self.weights is not None:
            raise SettingsError("medclip-lite brings its own weights", remedy="leave out --weights")
        if self.architecture != "medclip-lite" and self.weights is None:
            raise SettingsError(f"{self.architecture} needs weights", remedy="`--weights official` downloads MedCLIP's")


@dataclass(frozen=True)
class TrainSettings(Checked):
    """Course of the training."""

    epochs: int = option(10, help="Maximum number of epochs over all layers (0 = off).", minimum=0, common=True)
    head_epochs: int = option(
        40,
        help="Epochs of the head over features of the frozen tower (0 = off; with --epochs 0 as well, the result is "
        "the zero-shot model).",
        minimum=0,
    )
    patience: int = option(
        3, help="Epochs without a better validation AUROC before training stops (--epochs or more = off).", minimum=1
    )
    objective: str = option(
        "supervised",
        help="Training objective: cross-entropy (supervised), MedCLIP's semantic matching with the class prompts "
        "(contrastive), or the sum of the two (both).",
        choices=OBJECTIVES,
    )
    balance: str = option(
        "sampler",
        help="Class balancing: draw both classes equally often (sampler), weight the loss (loss), draw as many of each "
        "class as the smaller one has (undersample), or none.",
        choices=BALANCES,
    )
    batch_size: int = option(
        32, help="Radiographs per step, summed over all training processes.", minimum=2, common=True
    )
    learning_rate: float = option(1e-3, help="Peak learning rate of the layers behind the tower.", above=0, common=True)
    tower_learning_rate: float = option(2e-4, help="Peak learning rate of the tower's last stage.", above=0)
    layer_decay: float = option(
        1.0,
        help="Factor on the learning rate from each stage of the tower to the stage before it (1 = off).",
        above=0,
        maximum=1,
    )
    frozen_stages: int = option(
        0, help="Number of first stages of the tower that are not trained (0 = off).", minimum=0
    )
    batch_statistics: str = option(
        "fixed",
        help="Statistics of batch normalisation while fine-tuning: kept as they are (fixed) or updated (learnt).",
        choices=("fixed", "learnt"),
    )
    weight_decay: float = option(0.02, help="AdamW's weight decay, on weight matrices only (0 = off).", minimum=0)
    label_smoothing: float = option(
        0.05, help="Label smoothing of the cross-entropy, as a share of the label (0 = off).", minimum=0, maximum=0.5
    )
    gradient_clip: float = option(1.0, help="Maximum Euclidean norm of the gradient (0 = off).", minimum=0)
    average: float = option(
        0.0,
        help="Decay per step of a running average of the weights, which is then validated and kept (0 = off; 0.999 is "
        "common).",
        minimum=0,
        below=1,
    )
    wise_ft: bool = option(
        False, help="Keep the best interpolation between start and end of fine-tuning, by validation AUROC (WiSE-FT)."
    )
    augmentation: float = option(
        1.0, help="Strength of the augmentation, as a multiple of the documented one (0 = off).", minimum=0, maximum=3
    )
    degradation: float = option(
        1.0,
        help="Frequency of degradations as other machines and archives cause them, as a multiple of the documented one "
        "(0 = off).",
        minimum=0,
        maximum=3,
    )
    degraded_validation: float = option(
        0.0,
        help="Frequency of degradations in the radiographs that choose the epoch, each always degraded in the same way "
        "(0 = off). Calibration and operating point never see degraded radiographs.",
        minimum=0,
        maximum=3,
    )
    precision: str = option(
        "auto",
        help="Arithmetic of the tower while training: 32-bit, bfloat16, or the faster one on this machine (auto).",
        choices=("auto", "32", "bf16"),
    )
    compile: bool = option(False, help="Compile the tower with torch.compile.")
    workers: int = option(
        -1,
        help="Worker processes that load and augment, for each training process (-1 = from the number of cores, 0 = "
        "none).",
        minimum=-1,
    )
    devices: int = option(1, help="GPUs of this machine, or processes on its CPU, that train together.", minimum=1)
    nodes: int = option(1, help="Machines that train together; start the run on each with torchrun.", minimum=1)
    seed: int = _seed()


@dataclass(frozen=True)
class AnswerSettings(Checked):
    """Properties that the served answer has on validation."""

    sensitivity: float = option(
        0.98, help="Target sensitivity of the operating point, on validation.", minimum=0.5, maximum=1, common=True
    )
    balanced_point: bool = option(
        False,
        help="Choose the operating point where sensitivity equals specificity on validation, and ignore --sensitivity.",
    )
    coverage: float = option(
        0.95,
        help="Target coverage of the conformal sets that decide between an answer and Uncertain, as a share of the "
        "radiographs.",
        minimum=0.5,
        maximum=0.999,
    )


@dataclass(frozen=True)
class OutputSettings(Checked):
    """Folders, and what is published."""

    out: Path = option(Path("runs"), help="Folder in which run folders are created.", common=True)
    cache: Path | None = option(None, help="Folder of decoded images, shared by runs.  [default: OUT/cache]")
    publish: bool = option(True, help="Export to ONNX and publish as the next version to serve.", common=True)
    steps: str = option("onnx", help="Engines to publish, comma-separated: onnx, fp16, plan, int8.")
    repository: Path = option(Path("model_repository"), help="Triton model repository to publish to.")

    @property
    def cache_folder(self) -> Path:
        """Folder of decoded images."""
        return self.cache or self.out / "cache"


@dataclass(frozen=True)
class RunSettings:
    """All settings of a run; the names of the groups are headings of `--help`."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    training: TrainSettings = TrainSettings()
    answer: AnswerSettings = AnswerSettings()
    output: OutputSettings = OutputSettings()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> RunSettings:
        """Distribute values by name; a name that two groups have, such as seed, goes to both.

        Raises:
            SettingsError: A value is missing, has another type or is out of range.
        """
        made: dict[str, Any] = {
            group: settings(**{name: values[name] for name in kinds(settings) if name in values})
            for group, settings in groups().items()
        }
        return cls(**made)

    def as_flat(self) -> dict[str, Any]:
        """Every setting by name, as JSON values."""
        flat: dict[str, Any] = {}
        for group in groups():
            settings = getattr(self, group)
            flat |= {name: _as_json(getattr(settings, name)) for name in kinds(type(settings))}
        return flat


def groups() -> dict[str, type[Checked]]:
    """Settings dataclass of each group of `RunSettings`."""
    hints: dict[str, type[Checked]] = get_type_hints(RunSettings)
    return hints


def _as_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_json(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
