"""Turn a run into a checkpoint to pass on: float16 weights, the figures of an evaluation, a model card, no images.

    python -m finetune.evaluate --checkpoint runs/latest --data chest_xray --out runs/evaluation
    python -m finetune.release runs/latest --evaluation runs/evaluation --out finetune/reference

What the weights say after rounding is compared with what they said before, on the run's own radiographs; a difference
above one hundredth of a probability, or another finding for more than one radiograph and one in fifty, stops it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from finetune.models.served_model import checkpoint_folder, load_checkpoint, save_checkpoint
from finetune.reports.evaluation import CARD_FILE, FIGURES_FILE
from finetune.training.experiment import PARITY_FILE
from xray_client import RESEARCH_USE
from xray_client.console import console, plain_errors

from .errors import CheckpointError

SETTINGS_FILE = "settings.json"
MOST_IN_PROBABILITY, MOST_OTHER_FINDINGS = 0.01, 0.02

_FOLDER = click.Path(path_type=Path)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.argument("run", type=_FOLDER)
@click.option("--evaluation", type=_FOLDER, required=True, help="Folder that finetune.evaluate wrote of this run.")
@click.option("--out", type=_FOLDER, required=True, help="Folder for the checkpoint.")
def main(run: Path, evaluation: Path, out: Path) -> None:
    """Command line; see the module's text."""
    with plain_errors():
        about = ship(run, evaluation, out)
        console.print(f"rounding to float16 moves a probability by at most {about['rounding']['probability']:.1e}, "
                      f"novelty by {about['rounding']['novelty']:.1e}")  # fmt: skip
        size = sum(path.stat().st_size for path in out.iterdir())
        console.print(f"{out}: {size / 1e6:.1f} MB")
        console.print(RESEARCH_USE)


def ship(run: Path, evaluation: Path, out: Path) -> dict[str, Any]:
    """Write the checkpoint of `run` to `out` with the figures of `evaluation`; returns what its configuration says.

    Raises:
        CheckpointError: Run or evaluation are not there, or rounding changes the answers.
    """
    model, about = load_checkpoint(run / "checkpoint")
    try:
        figures = json.loads((evaluation / FIGURES_FILE).read_text())
        card = (evaluation / CARD_FILE).read_text()
        commands = _commands(run)
        images = torch.from_numpy(np.load(run / "checkpoint" / PARITY_FILE, allow_pickle=False))
    except (OSError, ValueError) as err:
        raise CheckpointError(
            f"cannot be read: {err}", source=f"{run}, {evaluation}", remedy="name a run and finetune.evaluate's --out"
        ) from err
    kept = {name: figures[name] for name in ("data", "intervals", "stages", "robustness", "masking", "novelty")}
    kept["data"] = {**kept["data"], "unreadable": len(kept["data"]["unreadable"])}
    about = {**about, "evaluation": kept, "command": "\n".join(commands)}
    staged = out.with_name(f".{out.name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    save_checkpoint(model, staged, about, half=True)
    about["rounding"] = _compare(model, load_checkpoint(staged)[0], images)
    save_checkpoint(model, staged, about, half=True)
    (staged / CARD_FILE).write_text(card.rstrip() + _made_by(about))
    shutil.rmtree(out, ignore_errors=True)
    staged.rename(out)
    return about


def _commands(run: Path) -> list[str]:
    """The command line of `run`, after those of the checkpoints that it started from as far as they are known."""
    settings = json.loads((run / SETTINGS_FILE).read_text())
    commands = []
    for start in settings.get("start") or []:
        if (Path(start) / SETTINGS_FILE).exists():
            commands += _commands(Path(start))
        else:
            commands += load_checkpoint(checkpoint_folder(Path(start)))[1].get("command", "").splitlines()
    return [*commands, _command(settings)]


def _command(settings: dict[str, Any]) -> str:
    """The run's command line, without what only says where things lie on the machine that made it."""
    at_home = {"data", "out", "cache", "repository", "publish", "resume", "splits", "steps"}
    words = ["python -m finetune.run --data DIR"]
    for name, value in settings.items():
        if name in at_home or value is None:
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
        f"{rounding['radiographs']} radiographs of validation that moved "
        f"a probability by at most {rounding['probability']:.1e}.\n"
    )


@torch.inference_mode()
def _compare(exact: torch.nn.Module, rounded: torch.nn.Module, images: torch.Tensor) -> dict[str, float]:
    """Largest differences over the run's own radiographs."""
    (p, d, _, n), (q, e, _, m) = exact(images), rounded(images)
    found = {
        "radiographs": len(images),
        "probability": float((p - q).abs().max()),
        "novelty": float((n - m).abs().max()),
        "other_findings": float((d != e).float().mean()),
    }
    # A single radiograph on the edge of a finding says nothing, however few there are.
    other = round(found["other_findings"] * len(images))
    if found["probability"] > MOST_IN_PROBABILITY or other > max(1, MOST_OTHER_FINDINGS * len(images)):
        raise CheckpointError(f"rounding to float16 changes the answers: {found}", remedy="ship the run as it is")
    return found


if __name__ == "__main__":
    main()
