"""Fine-tune on a folder of chest radiographs, then export and publish the result for serving.

    python -m finetune.run --data chest_xray
    python -m finetune.run --data chest_xray --epochs 0 --head-epochs 0 --no-publish     # zero-shot only

The run folder holds the checkpoint, metrics.json (before and after, with intervals), splits.csv, ROC and confusion
pictures and the training curves; `runs/latest` points to the newest.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import click
from rich.table import Table

from xray_build.console import console, plain_errors, signals_interrupt
from xray_client import RESEARCH_USE

_SHOWN_STAGES = {"before": "before (zero-shot)", "head_only": "head only", "after": "after fine-tuning"}
_SHOWN_METRICS = ("accuracy", "sensitivity", "specificity", "auroc")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--data",
    "root",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of radiographs: {train,val,test}/{NORMAL,PNEUMONIA}, or {NORMAL,PNEUMONIA}.",
)
@click.option(
    "--model",
    "architecture",
    type=click.Choice(["medclip-lite"]),
    default="medclip-lite",
    help="Network; medclip-lite trains on a CPU.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), help="Where run folders are made.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=None,
    help="Where decoded images are kept.  [default: OUT/cache]",
)
@click.option(
    "--epochs", type=click.IntRange(0), default=10, help="At most this many passes over all layers (0 = off)."
)
@click.option(
    "--head-epochs", type=click.IntRange(0), default=40, help="Passes of the head over fixed features (0 = off)."
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    default=3,
    help="Stop after this many epochs without a better validation AUROC.",
)
@click.option("--batch-size", type=click.IntRange(2), default=32, help="Radiographs per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    default=1e-3,
    help="Of all layers behind the image tower.",
)
@click.option(
    "--tower-learning-rate", type=click.FloatRange(0, min_open=True), default=2e-4, help="Of the image tower."
)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.02, help="Of weight matrices (0 = off).")
@click.option("--dropout", type=click.FloatRange(0, 0.9), default=0.2, help="On the embedding (0 = off).")
@click.option("--label-smoothing", type=click.FloatRange(0, 0.5), default=0.05, help="(0 = off).")
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
@click.option(
    "--workers", type=click.IntRange(-1), default=-1, help="Augmenting processes (-1 = from the cores, 0 = none)."
)
@click.option("--seed", type=int, default=0, help="Of split, weights and augmentation.")
@click.option("--publish/--no-publish", default=True, help="Export to ONNX and publish as the next served version.")
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Triton model repository."
)
def main(
    root: Path,
    architecture: str,
    out: Path,
    cache: Path | None,
    dropout: float,
    val_fraction: float,
    geometry: str,
    sensitivity: float,
    coverage: float,
    seed: int,
    publish: bool,
    repository: Path,
    **training: object,
) -> None:
    """Command line; see the module's text."""
    # Imported late: --help and a wrong option should not wait for torch.
    from .experiment import DataSettings, TrustSettings, run
    from .export import export_and_publish
    from .model import ModelConfig
    from .train import TrainSettings

    with plain_errors(), signals_interrupt():
        folder = out / time.strftime("%Y-%m-%dT%H-%M-%S")
        # Only complete runs get their name; whatever stops this one, nothing half-written stays.
        staging = out / f".{folder.name}-{os.getpid()}.partial"
        try:
            data = DataSettings(root, cache or out / "cache", val_fraction, geometry, seed)
            staging.mkdir(parents=True)
            result = run(
                data,
                ModelConfig(architecture=architecture, dropout=dropout),
                TrainSettings(seed=seed, **training),  # type: ignore[arg-type]
                TrustSettings(sensitivity, coverage),
                staging,
            )
            staging.rename(folder)
        except KeyboardInterrupt:
            raise click.ClickException("interrupted; nothing was kept but the decoded images") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _point_latest_to(folder)
        _show(result)
        click.echo(f"run folder: {folder}")
        if publish:
            export_and_publish(folder, repository)
        click.echo(RESEARCH_USE)


def _point_latest_to(folder: Path) -> None:
    staged = folder.parent / f".latest-{os.getpid()}"
    staged.symlink_to(folder.name)
    staged.replace(folder.parent / "latest")


def _show(result: dict) -> None:
    for split in ("validation", "test"):
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
