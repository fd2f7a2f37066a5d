"""Checkpoints: the tensors of a served model (`model.safetensors`) and a `config.json` that rebuilds it.

Loading is strict. Matrices may be stored as float16; the loaded model computes in float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune.data.records import VAL
from finetune.errors import CheckpointError
from finetune.run_folder import CHECKPOINT_FOLDER
from xray_client import LABELS, Preprocessing, PreprocessingMismatch
from xray_client.files import sha256, write_atomically
from xray_client.parsing import parse_json

from .classifier import ModelConfig, RadiographClassifier
from .served_model import ServedModel
from .weights import tensor_problems

CHECKPOINT_VERSION = 2
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
REFERENCE = Path(__file__).parents[1] / "reference"  # the checkpoint that comes with the project


def save_checkpoint(model: ServedModel, folder: Path, about: dict[str, Any], *, half: bool = False) -> None:
    """Write a checkpoint.

    The configuration is written last: a folder without it is no checkpoint.

    Args:
        model: Model to save.
        folder: Target folder, created if necessary.
        about: Metrics, data and settings, for readers; not needed to rebuild the model.
        half: Store matrices and kernels as float16, half the size. Scales, biases, statistics and the parameters of
            the decision stay float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"checkpoint_version": CHECKPOINT_VERSION, "model": asdict(model.classifier.config), "about": about}
    write_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def checkpoint_folder(named: Path) -> Path:
    """Resolve a run folder, a checkpoint folder or `reference`, the project's own model, to a checkpoint folder."""
    if (named / CHECKPOINT_FOLDER).is_dir():
        return named / CHECKPOINT_FOLDER
    return REFERENCE if named == Path("reference") and not named.exists() else named


def load_checkpoint(folder: Path) -> tuple[ServedModel, dict[str, Any]]:
    """Rebuild a served model in evaluation mode, and return it with the checkpoint's `about`.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of another version, or its weights do not match its
            configuration.
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
            f"{CONFIG_FILE} does not describe a known model: {err!r}",
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
    model.load_state_dict(tensors, strict=True)  # copies float16 into float32
    return model.eval(), rename_old_keys(config["about"])


def mean_weights(checkpoints: Sequence[Path], like: ModelConfig) -> dict[str, Tensor]:
    """Average the classifiers of several checkpoints (model soup, Wortsman et al. 2022) into one state dict.

    Args:
        checkpoints: One or more checkpoints, as accepted by `checkpoint_folder`.
        like: Configuration they must match; preprocessing, prompts and dropout may differ.

    Raises:
        CheckpointError: A checkpoint cannot be read, or has another architecture or width.
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
    """Return the SHA-256 of each file of a checkpoint."""
    folder = checkpoint_folder(named)
    return {name: sha256(folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)}


def zero_shot_seed(start: Sequence[Path], own: int) -> int:
    """Return the seed of the zero-shot network at the root of the chain of runs; `own` if this run starts the chain."""
    if not start:
        return own
    about = load_checkpoint(checkpoint_folder(start[0]))[1]
    return int(about.get("zero_shot_seed", about.get("training", {}).get("seed", 0)))


def rename_old_keys(about: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of earlier releases in a checkpoint's `about`.

    - `trust` is `decision`.
    - The metrics of the split `validation` are those of `val`.
    """
    renamed = {{"trust": "decision"}.get(name, name): value for name, value in about.items()}
    if isinstance(metrics := renamed.get("metrics"), Mapping):
        renamed["metrics"] = {{"validation": VAL}.get(name, name): value for name, value in metrics.items()}
    return renamed


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            "no checkpoint here", source=str(folder), remedy="`python -m finetune.run --data DIR` trains one"
        )
    try:
        config: dict[str, Any] = parse_json(path.read_text())
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
    """Raise `CheckpointError` if tensors and network differ: a partly loaded network would predict nonsense."""
    problems = tensor_problems(found, expected)
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(
            f"weights do not match {CONFIG_FILE}, {len(problems)} tensors: {shown}",
            source=str(folder),
            remedy="the two files come from different runs; train again",
        )
