"""Fine-tune on a folder of chest radiographs, then export and publish the result for serving.

    python -m finetune.run --data chest_xray
    python -m finetune.run --data chest_xray --epochs 0 --head-epochs 0 --no-publish     # zero-shot only
    python -m finetune.run --data my_hospital --start reference                          # from the reference model on

    python -m finetune.run --resume runs/2026-01-31T12-00-00-4711.partial                # after an interruption
    torchrun --nproc-per-node 4 -m finetune.run --data chest_xray --devices 4           # several GPUs

The run folder holds the checkpoint, metrics.json (before and after, with intervals), settings.json, environment.json,
splits.csv, the training curves (CSV, TensorBoard) and pictures; `runs/latest` points to the newest.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
from rich.table import Table

from finetune.training.hardware import rank
from xray_client import RESEARCH_USE
from xray_client.console import console, plain_errors, signals_interrupt

from .settings import BALANCES, OBJECTIVES, DataSettings, TrainSettings, TrustSettings

SETTINGS_FILE = "settings.json"
RESUME_FOLDER = "resume"
_STAGING = "MEDCLIP_TRITON_STAGING"
_SHOWN_STAGES = {"before": "before", "head_only": "head only", "after": "after fine-tuning"}
_SHOWN_METRICS = ("accuracy", "sensitivity", "specificity", "auroc")


def _defaults_from(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    """Take a settings file's values as defaults: what the command line says goes before it."""
    if path is None:
        return None
    try:
        values = json.loads((path / SETTINGS_FILE if path.is_dir() else path).read_text())
    except (OSError, ValueError) as err:
        raise click.BadParameter(f"{path} is no settings file: {err}") from err
    known = {parameter.name for parameter in context.command.params}
    if not isinstance(values, dict) or (unknown := values.keys() - known):
        raise click.BadParameter(f"{path} has settings that are not known here: {', '.join(sorted(unknown))}")
    context.default_map = {**(context.default_map or {}), **values}
    return path


_FOLDER = click.Path(path_type=Path)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--data",
    type=_FOLDER,
    required=True,
    help="Folder with {train,val,test}/{NORMAL,PNEUMONIA} or {NORMAL,PNEUMONIA}; table with path and label, and where "
    "known patient and split; or pneumoniamnist:224.",
)
@click.option(
    "--config",
    type=_FOLDER,
    is_eager=True,
    callback=_defaults_from,
    expose_value=False,
    help="settings.json of a run or a search, whose values become the defaults.",
)
@click.option(
    "--resume",
    type=_FOLDER,
    is_eager=True,
    callback=_defaults_from,
    help="Go on with an interrupted run: its folder, which ends in .partial.",
)
@click.option(
    "--model",
    "architecture",
    type=click.Choice(["medclip-lite", "medclip-vit", "medclip-resnet"]),
    default="medclip-lite",
    help="Network; medclip-lite trains on a CPU, the others are MedCLIP's own.",
)
@click.option(
    "--weights",
    type=str,
    default=None,
    help="MedCLIP's weights, which its own networks need: zip, pytorch_model.bin, folder, safetensors, `official` to "
    "download them, or `random` to start from nothing.",
)
@click.option(
    "--start",
    type=_FOLDER,
    multiple=True,
    help="Start from a run's checkpoint, or `reference`, instead of zero-shot; repeatable: the mean of the weights of "
    "runs that had the same start (with --epochs 0 --head-epochs 0 nothing else is trained).",
)
@click.option("--out", type=_FOLDER, default=Path("runs"), help="Where run folders are made.")
@click.option("--cache", type=_FOLDER, default=None, help="Where decoded images are kept.  [default: OUT/cache]")
@click.option("--splits", type=_FOLDER, default=None, help="splits.csv of an earlier run to use again.")
@click.option(
    "--epochs", type=click.IntRange(0), default=10, help="At most this many passes over all layers (0 = off)."
)
@click.option(
    "--head-epochs", type=click.IntRange(0), default=40, help="Passes of the head over fixed features (0 = off)."
)
@click.option(
    "--patience", type=click.IntRange(1), default=3, help="Stop after so many epochs without a better validation AUROC."
)
@click.option(
    "--objective",
    type=click.Choice(OBJECTIVES),
    default="supervised",
    help="contrastive: MedCLIP's semantic matching with the class prompts.",
)
@click.option(
    "--balance",
    type=click.Choice(BALANCES),
    default="sampler",
    help="How rare and frequent class get the same say: drawn equally often, weighed in the loss, "
    "as many as the smaller class has, or not at all.",
)
@click.option("--batch-size", type=click.IntRange(2), default=32, help="Radiographs per step, of all processes.")
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), default=1e-3, help="Of all layers behind the tower."
)
@click.option(
    "--tower-learning-rate", type=click.FloatRange(0, min_open=True), default=2e-4, help="Of the tower's last stage."
)
@click.option(
    "--layer-decay",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    help="Each stage of the tower learns so much more slowly than the one behind it (1 = all alike).",
)
@click.option(
    "--frozen-stages", type=click.IntRange(0), default=0, help="First stages of the tower that stay (0 = none)."
)
@click.option(
    "--batch-statistics",
    type=click.Choice(["fixed", "learnt"]),
    default="fixed",
    help="Of batch normalisation in fine-tuning.",
)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.02, help="Of weight matrices (0 = off).")
@click.option("--dropout", type=click.FloatRange(0, 0.9), default=0.2, help="On the embedding (0 = off).")
@click.option("--label-smoothing", type=click.FloatRange(0, 0.5), default=0.05, help="(0 = off).")
@click.option("--gradient-clip", type=click.FloatRange(0), default=1.0, help="Longest gradient (0 = off).")
@click.option(
    "--average",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    help="Decay per step of a running average of the weights, which is then kept (0 = off; 0.999 is common).",
)
@click.option(
    "--wise-ft/--no-wise-ft",
    default=False,
    help="Keep the best point between start and end of fine-tuning, by validation AUROC.",
)
@click.option("--augmentation", type=click.FloatRange(0, 3), default=1.0, help="Strength (0 = off).")
@click.option(
    "--degradation",
    type=click.FloatRange(0, 3),
    default=1.0,
    help="How often radiographs are degraded as other machines and archives would (0 = never).",
)
@click.option(
    "--degraded-validation",
    type=click.FloatRange(0, 3),
    default=0.0,
    help="How often the radiographs that choose the epoch are degraded, always in the same way (0 = never).",
)
@click.option(
    "--val-fraction", type=click.FloatRange(0.02, 0.5), default=0.15, help="Share of the patients to validate on."
)
@click.option(
    "--geometry",
    type=click.Choice(["auto", "pad", "stretch"]),
    default="auto",
    help="pad keeps the aspect ratio, as MedCLIP; auto pads unless all images are 224 x 224 already.",
)
@click.option(
    "--sensitivity", type=click.FloatRange(0.5, 1), default=0.98, help="Of the operating point, on validation."
)
@click.option(
    "--balanced-point", is_flag=True, help="Instead: the operating point where sensitivity and specificity are equal."
)
@click.option(
    "--coverage",
    type=click.FloatRange(0.5, 0.999),
    default=0.95,
    help="Of the conformal sets that decide between an answer and Uncertain.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "32", "bf16"]),
    default="auto",
    help="Arithmetic of the tower in training.",
)
@click.option("--compile/--no-compile", default=False, help="Run the tower through torch.compile.")
@click.option(
    "--workers", type=click.IntRange(-1), default=-1, help="Augmenting processes (-1 = from the cores, 0 = none)."
)
@click.option("--devices", type=click.IntRange(1), default=1, help="GPUs, or processes on a CPU, that train together.")
@click.option("--nodes", type=click.IntRange(1), default=1, help="Machines that train together, started by torchrun.")
@click.option("--seed", type=int, default=0, help="Of split, weights and augmentation.")
@click.option("--publish/--no-publish", default=True, help="Export to ONNX and publish as the next served version.")
@click.option("--steps", default="onnx", help="Engines to publish, comma-separated: onnx, fp16, plan, int8.")
@click.option("--repository", type=_FOLDER, default=Path("model_repository"), help="Triton model repository.")
@click.pass_context
def main(
    context: click.Context,
    data: Path,
    resume: Path | None,
    architecture: str,
    weights: str | None,
    start: tuple[Path, ...],
    out: Path,
    cache: Path | None,
    splits: Path | None,
    dropout: float,
    val_fraction: float,
    geometry: str,
    sensitivity: float,
    balanced_point: bool,
    coverage: float,
    seed: int,
    publish: bool,
    steps: str,
    repository: Path,
    **training: object,
) -> None:
    """Command line; see the module's text."""
    # Imported late: --help and a wrong option should not wait for torch.
    from finetune.data.splits import SPLITS_FILE
    from finetune.models.classifier import ModelConfig
    from finetune.training.experiment import run

    from .export import export_and_publish, parse_steps

    wanted = parse_steps(steps)
    if architecture == "medclip-lite" and weights is not None:
        raise click.BadParameter("medclip-lite brings its own weights", param_hint="--weights")
    if architecture != "medclip-lite" and weights is None:
        raise click.BadParameter(f"{architecture} needs them; `official` downloads MedCLIP's", param_hint="--weights")
    with plain_errors(), signals_interrupt():
        source = DataSettings(data, cache or out / "cache", val_fraction, geometry, seed, splits)
        with _staged(out, resume, context.params) as (staging, folder):
            result = run(
                source,
                ModelConfig(architecture=architecture, dropout=dropout),
                TrainSettings(seed=seed, **training),  # type: ignore[arg-type]
                TrustSettings(None if balanced_point else sensitivity, coverage),
                staging,
                weights=None if weights == "random" else weights,
                start=start,
            )
        _point_latest_to(folder)
        _show(result)
        click.echo(f"run folder: {folder}")
        if publish:
            judge = data if "int8" in wanted else None
            export_and_publish(folder, repository, steps=wanted, validation=judge, splits=folder / SPLITS_FILE)
        click.echo(RESEARCH_USE)


@contextmanager
def _staged(out: Path, resume: Path | None, settings: Mapping[str, object]) -> Iterator[tuple[Path, Path]]:
    """Only complete runs get their name. One that stops keeps what it takes to go on, or nothing at all.

    Yields:
        The folder to write into, and the name that it gets in the end.
    """
    if rank() > 0:  # trains along; the first process speaks and writes
        console.quiet = True
        staging = Path(os.environ.get(_STAGING) or out / f".rank{rank()}.partial")
        yield staging, staging
        return
    staging = resume or out / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}-{os.getpid()}.partial"
    folder = out / re.sub(r"(-\d+)?\.partial$", "", staging.name)
    if resume and not (resume / RESUME_FOLDER).is_dir():
        raise click.ClickException(f"{resume} holds no interrupted run")
    os.environ[_STAGING] = str(staging)  # for the processes that train along
    (staging / RESUME_FOLDER).mkdir(parents=True, exist_ok=True)
    lock = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise click.ClickException(f"{staging} is still under way") from None
    try:
        kept = {name: value for name, value in settings.items() if name != "resume"}
        text = json.dumps(kept, indent=2, default=str)  # paths
        (staging / SETTINGS_FILE).write_text(text + "\n")
        yield staging, folder
        staging.rename(folder)
    except BaseException as err:
        interrupted = isinstance(err, KeyboardInterrupt)
        if any((staging / RESUME_FOLDER).glob("*.ckpt")):
            console.print(f"go on with: python -m finetune.run --resume {staging}")
        else:
            shutil.rmtree(staging, ignore_errors=True)
        if interrupted:
            raise click.ClickException("interrupted") from None
        raise
    finally:
        os.close(lock)


def _point_latest_to(folder: Path) -> None:
    staged = folder.parent / f".latest-{os.getpid()}"
    staged.symlink_to(folder.name)
    staged.replace(folder.parent / "latest")


def _show(result: dict) -> None:
    from finetune.data.records import TEST, VAL

    for split in (VAL, TEST):
        stages = result["metrics"].get(split)
        if not stages:
            continue
        table = Table(
            "", *_SHOWN_METRICS, title=f"{split}, n = {stages['after']['images']}, 95 % intervals over patients"
        )
        for stage, name in _SHOWN_STAGES.items():
            if stage in stages:
                cells = [stages[stage][metric] for metric in _SHOWN_METRICS]
                table.add_row(name, *(f"{c['value']:.3f} ({c['low']:.3f}-{c['high']:.3f})" for c in cells))
        console.print(table)


if __name__ == "__main__":
    main()
