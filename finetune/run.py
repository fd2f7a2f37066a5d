"""Fine-tune on a folder of chest radiographs, then export and publish the result for serving.

    python -m finetune.run --data chest_xray
    python -m finetune.run --data chest_xray --epochs 0 --head-epochs 0 --no-publish     # zero-shot only
    python -m finetune.run --data my_hospital --start reference                          # from the reference model on
    python -m finetune.run --config settings.yaml --out runs/second                      # settings from a file

    python -m finetune.run --resume runs/2026-01-31T12-00-00-4711.partial                # after an interruption
    torchrun --nproc-per-node 4 -m finetune.run --data chest_xray --devices 4           # several GPUs

The run folder holds the checkpoint, metrics.json (before and after, with intervals), settings.json, environment.json,
splits.csv, the training curves (CSV, TensorBoard) and pictures; `runs/latest` points to the newest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

from xray_client import RESEARCH_USE
from xray_client.console import console, plain_errors, signals_interrupt

from .command_line import SettingsCommand, all_settings, config_option, help_all_option
from .errors import SettingsError
from .run_folder import SPLITS_FILE
from .settings import RunSettings

_SHOWN_STAGES = {"before": "before", "head_only": "head only", "after": "after fine-tuning"}
_SHOWN_METRICS = ("accuracy", "sensitivity", "specificity", "auroc")


@click.command(
    cls=SettingsCommand,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    help=__doc__.split("\n")[0],
)
@all_settings
@config_option(
    "--config",
    expose_value=False,
    help="YAML or JSON file with further settings, such as settings.json of a run or best.json of a search, or a run "
    "folder; options of the command line override it.",
)
@config_option("--resume", help="Go on with an interrupted run: its folder, which ends in .partial.")
@help_all_option
def main(resume: Path | None, **values: Any) -> None:
    """Run the command line."""
    # Imported late: --help and a wrong option should not wait for torch.
    from .export import export_and_publish, parse_steps

    try:
        settings = RunSettings.from_flat(values)
    except SettingsError as err:
        raise click.UsageError(str(err)) from err
    steps = parse_steps(settings.output.steps)
    from .training.pipeline import run
    from .training.staging import point_latest_to, staged

    with plain_errors(), signals_interrupt():
        with staged(settings, resume) as (staging, folder):
            result = run(settings, staging)
        point_latest_to(folder)
        _show(result)
        click.echo(f"run folder: {folder}")
        if settings.output.publish:
            export_and_publish(
                folder,
                settings.output.repository,
                steps=steps,
                validation=settings.data.data if "int8" in steps else None,
                splits=folder / SPLITS_FILE,
                labels=settings.data.labels,
            )
        click.echo(RESEARCH_USE)


def _show(result: dict[str, Any]) -> None:
    from .data.records import TEST, VAL

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
