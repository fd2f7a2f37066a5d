"""Release a run as a checkpoint to share: float16 weights, the metrics of an evaluation, a model card, no images.

    python -m finetune.evaluate --checkpoint runs/latest --data chest_xray --out runs/evaluation
    python -m finetune.release runs/latest --evaluation runs/evaluation --out finetune/reference

Predictions after rounding are compared with those before, on the run's own radiographs. The release fails if a
probability changes by more than 0.01, or if more than 2 % of the findings change, which a few changed ones do not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from scipy.stats import binomtest

from finetune.models.checkpoint import CONFIG_FILE, WEIGHTS_FILE, checkpoint_folder, load_checkpoint, save_checkpoint
from finetune.reports.evaluation import CARD_FILE, FIGURES_FILE
from xray_client import RESEARCH_USE, OutputRefused
from xray_client.console import console, plain_errors
from xray_client.files import new_folder
from xray_client.parsing import parse_json

from .errors import CheckpointError
from .run_folder import CHECKPOINT_FOLDER, PARITY_FILE, SETTINGS_FILE

MAX_PROBABILITY_CHANGE, MAX_FINDINGS_CHANGED, SIGNIFICANCE = 0.01, 0.02, 0.05

_FOLDER = click.Path(path_type=Path)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.argument("run", type=_FOLDER)
@click.option("--evaluation", type=_FOLDER, required=True, help="Output folder of finetune.evaluate for this run.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the checkpoint; replaced if it exists.")
def main(run: Path, evaluation: Path, out: Path) -> None:
    """Run the command line."""
    with plain_errors():
        about = release(run, evaluation, out)
        console.print(f"rounding to float16 changes a probability by at most {about['rounding']['probability']:.1e}, "
                      f"novelty by {about['rounding']['novelty']:.1e}")  # fmt: skip
        size = sum(path.stat().st_size for path in out.iterdir())
        console.print(f"{out}: {size / 1e6:.1f} MB")
        console.print(RESEARCH_USE)


def release(run: Path, evaluation: Path, out: Path) -> dict[str, Any]:
    """Write the checkpoint of `run` to `out` with the metrics of `evaluation`, and return its `about`.

    Raises:
        CheckpointError: Run or evaluation cannot be read, or rounding changes the predictions.
        OutputRefused: `out` holds something else than a checkpoint.
    """
    _refuse_another(out)
    model, about = load_checkpoint(run / CHECKPOINT_FOLDER)
    try:
        figures = parse_json((evaluation / FIGURES_FILE).read_text())
        card = (evaluation / CARD_FILE).read_text()
        commands = _commands(run)
        images = torch.from_numpy(np.load(run / CHECKPOINT_FOLDER / PARITY_FILE, allow_pickle=False))
    except (OSError, ValueError) as err:
        raise CheckpointError(
            f"cannot be read: {err}", source=f"{run}, {evaluation}", remedy="name a run and finetune.evaluate's --out"
        ) from err
    lacking = [name for name in ("robustness", "masking") if name not in figures]
    if lacking:
        raise CheckpointError(
            f"the evaluation lacks {' and '.join(lacking)}",
            source=str(evaluation),
            remedy="evaluate on both classes, without --check-images 0",
        )
    kept = {name: figures[name] for name in ("data", "intervals", "stages", "robustness", "masking", "novelty")}
    # Names of files may be names of patients: a checkpoint that is passed on holds their number alone.
    data = kept["data"]
    left_out = sum(entry["files"] for entry in data.get("left_out", []))
    kept["data"] = {**data, "unreadable": len(data["unreadable"]), "left_out": left_out}
    about = {**about, "evaluation": kept, "command": "\n".join(commands)}
    with new_folder(out, replace=True) as staged:
        save_checkpoint(model, staged, about, half=True)
        about["rounding"] = _compare(model, load_checkpoint(staged)[0], images)
        save_checkpoint(model, staged, about, half=True)
        (staged / CARD_FILE).write_text(card.rstrip() + _made_by(about))
    return about


def _refuse_another(out: Path) -> None:
    """Refuse to replace a folder that holds more than a checkpoint."""
    others = {path.name for path in out.iterdir()} - {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE} if out.is_dir() else set()
    if others:
        raise OutputRefused(
            f"this folder holds {len(others)} files that are no checkpoint's",
            remedy="name another folder, or remove this one first",
            source=str(out),
        )


def _commands(run: Path) -> list[str]:
    """Return the command line of `run`, preceded by the known ones of the checkpoints that it started from."""
    settings = parse_json((run / SETTINGS_FILE).read_text())
    commands = []
    for start in settings.get("start") or []:
        if (Path(start) / SETTINGS_FILE).exists():
            commands += _commands(Path(start))
        else:
            commands += load_checkpoint(checkpoint_folder(Path(start)))[1].get("command", "").splitlines()
    return [*commands, _command(settings)]


def _command(settings: dict[str, Any]) -> str:
    """Rebuild the run's command line, without paths of the machine that ran it."""
    local = {"data", "out", "cache", "repository", "publish", "resume", "splits", "steps"}
    words = ["python -m finetune.run --data DIR"]
    for name, value in settings.items():
        if name in local or value is None:
            continue
        option = "--" + {"architecture": "model"}.get(name, name).replace("_", "-")
        if isinstance(value, list):
            words += [f"{option} {Path(entry).name}" for entry in value]
        elif isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            words.append(f"{option} {value}")
    return " ".join(words)


def _made_by(about: dict[str, Any]) -> str:
    rounding, software = (
        about["rounding"],
        ", ".join(f"{name} {version}" for name, version in about["software"].items()),
    )
    return (
        f"\n\n## Made by\n\n```\n{about['command']}\n```\n\n"
        f"With {software}. Matrices are stored as float16: over "
        f"{rounding['radiographs']} validation radiographs that changed "
        f"a probability by at most {rounding['probability']:.1e}.\n"
    )


@torch.inference_mode()
def _compare(exact: torch.nn.Module, rounded: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Return the largest changes over the run's own radiographs."""
    (p, d, _, n), (q, e, _, m) = exact(images), rounded(images)
    found = {
        "radiographs": len(images),
        "probability": float((p - q).abs().max()),
        "novelty": float((n - m).abs().max()),
        "findings_changed": float((d != e).any(dim=1).float().mean()),
    }
    # A few radiographs at the threshold of a finding are no evidence that more than the allowed share change.
    changed = binomtest(int((d != e).any(dim=1).sum()), len(images), MAX_FINDINGS_CHANGED, alternative="greater")
    if found["probability"] > MAX_PROBABILITY_CHANGE or changed.pvalue < SIGNIFICANCE:
        raise CheckpointError(f"rounding to float16 changes the predictions: {found}", remedy="share the run itself")
    return found


if __name__ == "__main__":
    main()
