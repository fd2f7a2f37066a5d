"""Evaluate a checkpoint or a served model on labelled radiographs: metrics, plots, checks and a report.

    python -m finetune.evaluate --checkpoint runs/latest --data chest_xray --split val
    python -m finetune.evaluate --url 127.0.0.1:8001 --data chest_xray

    python -m finetune.evaluate --checkpoint runs/latest --against reference --data table.csv --by view --by age:0,18,65

Writes `report.html` (self-contained), `evaluation.json`, `predictions.csv` with every answer, `metrics.csv` and `.tex`
for a paper, and the plots; for a checkpoint also `MODEL_CARD.md`.
Nothing is fitted here: calibration, operating point, band and novelty limit are evaluated as they are served.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from xray_client import FINDINGS, RESEARCH_USE, XrayClient
from xray_client.console import console, plain_errors

from .command_line import setting
from .data.cache import build_cache
from .data.labels import LabelNames
from .data.left_out import left_out_lines
from .data.sources import find_radiographs
from .data.splits import is_split_of
from .errors import SettingsError
from .evaluation.comparison import Grouping
from .evaluation.evaluation import AUTO, SPLIT_CHOICES, choose_split, compare, evaluate
from .evaluation.predictors import CheckpointPredictor, Predictor, ServerPredictor
from .models.checkpoint import checkpoint_folder, load_checkpoint
from .models.classifier import ModelConfig, RadiographClassifier
from .reports.evaluation import write_report
from .run_folder import SPLITS_FILE
from .settings import DataSettings


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Run folder, checkpoint folder, or `reference`.")
@click.option("--url", help="Address of a Triton server to evaluate instead, host:port.")
@click.option("--model", default="medclip", help="Name of the served model.")
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Labelled radiographs, as for finetune.run."
)
@setting(DataSettings, "labels")
@click.option(
    "--splits",
    type=click.Path(path_type=Path),
    help="splits.csv of the run that trained the model.  [default: the run folder's, if it lists these radiographs]",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Another run, checkpoint or `reference` to compare with, on the same radiographs.",
)
@click.option("--against-url", help="Address of a Triton server to compare with instead, host:port.")
@click.option(
    "--by",
    "groups",
    multiple=True,
    help="Column of the table to divide by, such as view, or a number's with limits, such as age:0,18,65; repeatable.",
)
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of Pneumonia among those examined, to give PPV and NPV for it.",
)
@click.option("--weights", help="MedCLIP's weights that fine-tuning started from, to evaluate them as well.")
@click.option(
    "--split",
    type=click.Choice(SPLIT_CHOICES),
    default=AUTO,
    help="Split to evaluate on; auto = test, else validation of --splits, else all.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/evaluation"), help="Folder of the report.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/cache"), help="Folder of decoded images.")
@click.option(
    "--novel",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of images that are no chest radiographs, to check novelty.",
)
@click.option(
    "--check-images",
    type=click.IntRange(0),
    default=200,
    help="Number of radiographs for the checks of robustness and heatmaps; 0 = skip them.",
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Operating point.  [default: the checkpoint's, or 0.5]")
@click.option("--seed", default=0, help="Seed of the bootstrap and of the draws in the checks.")
def main(
    checkpoint: Path | None, url: str | None, model: str, data: Path, labels: str | None, splits: Path | None,
    against: Path | None, against_url: str | None, groups: tuple[str, ...], prevalence: float | None,
    weights: str | None, split: str, out: Path, cache: Path, novel: tuple[Path, ...], check_images: int,
    threshold: float | None, seed: int,
) -> None:  # fmt: skip
    """Run the command line."""
    with plain_errors(), ExitStack() as stack:
        if (checkpoint is None) == (url is None):
            raise click.UsageError("name either --checkpoint or --url")
        if against is not None and against_url is not None:
            raise click.UsageError("name either --against or --against-url")
        groupings = [_grouping(text) for text in groups]
        about: dict[str, Any] = {}
        before: RadiographClassifier | None = None
        if checkpoint is not None:
            served, about = load_checkpoint(checkpoint_folder(checkpoint))
            predictor: Predictor = CheckpointPredictor(served)
            seed_of_start = about.get("zero_shot_seed", about.get("training", {}).get("seed"))
            before = _zero_shot(served.classifier.config, seed_of_start, weights)
        else:
            predictor = ServerPredictor(stack.enter_context(XrayClient(str(url), model=model)))
        source = find_radiographs(data, labels=LabelNames.parse(labels), to_train_on=False)
        for line in left_out_lines(source.left_out):
            console.print(line, style="yellow", markup=False, soft_wrap=True)
        prepared = build_cache(source.radiographs, predictor.preprocessing, source.root, cache)
        if (
            splits is None
            and checkpoint is not None
            and is_split_of(checkpoint / SPLITS_FILE, source.radiographs, source.root)
        ):
            splits = checkpoint / SPLITS_FILE
        chosen, described = choose_split(source, prepared, splits, split)
        evaluation = evaluate(
            predictor, prepared, chosen,
            threshold=threshold if threshold is not None else about.get("decision", {}).get("operating_point", 0.5),
            before=before, groupings=groupings, prevalence=prevalence,
            novel=novel, check_images=check_images, seed=seed,
        )  # fmt: skip
        if against is not None or against_url is not None:
            name = str(against or against_url)
            if against is not None:
                other_model, other_about = load_checkpoint(checkpoint_folder(against))
                other: Predictor = CheckpointPredictor(other_model)
            else:
                other, other_about = ServerPredictor(stack.enter_context(XrayClient(str(against_url), model=model))), {}
            same = other.preprocessing == predictor.preprocessing
            for_other = prepared if same else build_cache(source.radiographs, other.preprocessing, source.root, cache)
            point = other_about.get("decision", {}).get("operating_point", 0.5)
            compare(evaluation, other, for_other, name=name, threshold=point, seed=seed)
        evaluation.figures["data"] = {"source": source.name, "split": described, "unreadable": prepared.unreadable,
                                      "left_out": [asdict(entry) for entry in source.left_out]}  # fmt: skip
        evaluation.figures["model"] = f"checkpoint {checkpoint}" if checkpoint else f"model {model} served at {url}"
        page = write_report(evaluation, predictor.preprocessing, about, out, root=source.root)
        _show(evaluation.figures)
        console.print(f"report: {page}")
        console.print(RESEARCH_USE)


def _grouping(text: str) -> Grouping:
    try:
        return Grouping.parse(text)
    except SettingsError as err:
        raise click.UsageError(err.message) from err


def _zero_shot(config: ModelConfig, seed: int | None, weights: str | None) -> RadiographClassifier | None:
    """Rebuild the zero-shot network that training started from; None if that is impossible."""
    if weights is None and (config.architecture != "medclip-lite" or seed is None):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)  # medclip-lite's projection starts random, from the training's seed
        return RadiographClassifier(config, weights=weights).eval()


def _show(figures: dict[str, Any]) -> None:
    stages = figures["stages"]
    table = Table("", *stages, title=f"{figures['data']['source']}, {figures['data']['split']}")
    for name in stages["after"]:
        cells = [stage.get(name) for stage in stages.values()]
        if isinstance(cells[-1], dict) and "value" in cells[-1]:
            shown = [f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" if c else "" for c in cells]
            table.add_row(name.replace("_", " "), *shown)
    console.print(table)
    for group in figures.get("subgroups", ()):
        if group["worse"]:
            who = f"{group['by']} {group['group']}, n = {group['images']}"
            console.print(f"{who}: worse than the whole in {', '.join(group['worse'])}", style="yellow", soft_wrap=True)
    console.print(f"Findings: {', '.join(f'{n} {FINDINGS[i]}' for i, n in enumerate(stages['after']['findings']))}")


if __name__ == "__main__":
    main()
