"""The whole served graph in PyTorch: uint8 radiographs in, the contract's four outputs out. This is what is exported.

A checkpoint is this module's tensors (`model.safetensors`) and a `config.json` that rebuilds it; loading is strict. Its
matrices may be stored as float16; they are computed with as float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune.errors import CheckpointError
from xray_client import FINDINGS, LABELS, Preprocessing, PreprocessingMismatch

from .classifier import TOWERS, ModelConfig, RadiographClassifier
from .decision import Trust
from .weights import tensor_problems

CHECKPOINT_VERSION = 2
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
REFERENCE = Path(__file__).parents[1] / "reference"  # the checkpoint that comes with the project
UNCERTAIN = FINDINGS.index("Uncertain")


class ServedModel(nn.Module):
    """Classifier plus everything that was learnt about how far to trust it.

    Args:
        classifier: The fine-tuned (or zero-shot) network.
        trust: Calibration, decision band and novelty; None leaves neutral values for a checkpoint to fill.
    """

    temperature: Tensor
    bias: Tensor
    band: Tensor
    novelty_centre: Tensor
    novelty_whitening: Tensor
    novelty_limit: Tensor

    def __init__(self, classifier: RadiographClassifier, trust: Trust | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        trust = trust or Trust.neutral(TOWERS[classifier.config.architecture].channels)
        self.register_buffer("temperature", torch.tensor(trust.calibration.temperature))
        # Shared between the two logits, half each, so that their softmax is the calibrated probability.
        self.register_buffer("bias", torch.tensor([-0.5, 0.5]) * trust.calibration.bias)
        self.register_buffer("band", torch.tensor(trust.band))
        self.register_buffer("novelty_centre", trust.novelty.centre)
        self.register_buffer("novelty_whitening", trust.novelty.whitening)
        self.register_buffer("novelty_limit", torch.tensor(trust.novelty.limit))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """uint8 (n, 1, s, s) -> probability (n, 2), decision int32 (n, 1), heatmap (n, h, w), novelty (n, 1)."""
        features = self.classifier.features(image)
        pooled = features.mean(dim=(2, 3))
        probability = torch.softmax((self.classifier.logits_of_pooled(pooled) + self.bias) / self.temperature, dim=1)
        pneumonia = probability[:, 1:2]
        decision = (pneumonia >= self.band[1]).to(torch.int32)
        unsure = (pneumonia >= self.band[0]) & (pneumonia < self.band[1])
        decision = torch.where(unsure, torch.full_like(decision, UNCERTAIN), decision)
        heatmap = self.classifier.patch_evidence(features) / self.temperature
        distance = ((pooled - self.novelty_centre) @ self.novelty_whitening).norm(dim=1, keepdim=True)
        return probability, decision, heatmap, distance / self.novelty_limit


def save_checkpoint(model: ServedModel, folder: Path, about: dict[str, Any], *, half: bool = False) -> None:
    """Write the checkpoint; `about` (trust figures, data, settings) is for readers and is not needed to rebuild it.

    The configuration is written last: a folder without it is no checkpoint.

    Args:
        model: What to write.
        folder: Where to; made if need be.
        about: As above.
        half: Store matrices and kernels as float16, half the size. Scales, biases, statistics and everything that
            decides stay float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"checkpoint_version": CHECKPOINT_VERSION, "model": asdict(model.classifier.config), "about": about}
    staged = folder / f".{CONFIG_FILE}"
    staged.write_text(json.dumps(config, indent=2) + "\n")
    staged.replace(folder / CONFIG_FILE)


def checkpoint_folder(named: Path) -> Path:
    """The checkpoint folder that is meant: of a run, itself, or `reference`, the one that comes with the project."""
    if (named / "checkpoint").is_dir():
        return named / "checkpoint"
    return REFERENCE if named == Path("reference") and not named.exists() else named


def load_checkpoint(folder: Path) -> tuple[ServedModel, dict[str, Any]]:
    """Rebuild a served model in evaluation mode, and what was saved about it.

    Raises:
        CheckpointError: Missing, damaged, another version, or weights that do not match the configuration.
    """
    config = _read_config(folder)
    try:
        values = dict(config["model"])
        model_config = ModelConfig(
            **{
                **values,
                "preprocessing": Preprocessing(**values["preprocessing"]),
                "labels": tuple(values["labels"]),
            }
        )
        model = ServedModel(RadiographClassifier(model_config, pretrained=False))
    except PreprocessingMismatch as err:
        raise CheckpointError(err.message, source=str(folder), remedy=err.remedy) from err
    except (KeyError, TypeError, ValueError, RuntimeError) as err:
        raise CheckpointError(
            f"{CONFIG_FILE} does not describe a model that is known here: {err!r}",
            source=str(folder),
            remedy="use the release that wrote it, or train again",
        ) from err
    if model_config.labels != LABELS:
        raise CheckpointError(f"its labels are {model_config.labels}, not {LABELS}", source=str(folder))
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as err:
        raise CheckpointError(
            f"{WEIGHTS_FILE} cannot be read: {err}", source=str(folder), remedy="train again, or copy it again"
        ) from err
    _check_tensors(tensors, model.state_dict(), folder)
    model.load_state_dict(tensors, strict=True)  # copies into float32 what was stored as float16
    return model.eval(), config["about"]


def mean_weights(checkpoints: Sequence[Path], like: ModelConfig) -> dict[str, Tensor]:
    """State of the classifier whose weights are the mean of those of several checkpoints (Wortsman et al. 2022).

    Args:
        checkpoints: One or more, as `checkpoint_folder` takes them.
        like: The network they must be of; how images are prepared, prompts and dropout may differ.

    Raises:
        CheckpointError: One of them cannot be read, or is of another network.
    """
    states = []
    for named in checkpoints:
        classifier = load_checkpoint(checkpoint_folder(named))[0].classifier
        config = replace(
            classifier.config,
            preprocessing=like.preprocessing,
            prompts_version=like.prompts_version,
            dropout=like.dropout,
        )
        if config != like:
            raise CheckpointError(
                f"it is {config.architecture} of width {config.embedding_dim}, not {like.architecture} of width "
                f"{like.embedding_dim}",
                source=str(named),
                remedy="name its network with --model",
            )
        states.append(classifier.state_dict())
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def checkpoint_hashes(named: Path) -> dict[str, str]:
    """SHA-256 of the files of a checkpoint."""
    folder = checkpoint_folder(named)
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (WEIGHTS_FILE, CONFIG_FILE)}


def zero_shot_seed(start: Sequence[Path], own: int) -> int:
    """Seed of the zero-shot network that it all began with, however many runs ago; `own` if this run did."""
    if not start:
        return own
    about = load_checkpoint(checkpoint_folder(start[0]))[1]
    return int(about.get("zero_shot_seed", about.get("training", {}).get("seed", 0)))


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            "no checkpoint here", source=str(folder), remedy="`python -m finetune.run --data DIR` trains one"
        )
    try:
        config = json.loads(path.read_text())
        version = config["checkpoint_version"]
        config["model"], config["about"]
    except (ValueError, KeyError, TypeError) as err:
        raise CheckpointError(f"{CONFIG_FILE} is damaged: {err!r}", source=str(folder), remedy="train again") from err
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint version {version}, this release reads {CHECKPOINT_VERSION}", source=str(folder)
        )
    return config


def _check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], folder: Path) -> None:
    """Name what is wrong; a half-loaded network would answer, and answer nonsense."""
    problems = tensor_problems(found, expected)
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(
            f"weights do not match {CONFIG_FILE}, {len(problems)} tensors: {shown}",
            source=str(folder),
            remedy="the two files come from different runs; train again",
        )
