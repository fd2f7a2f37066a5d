"""Judge a checkpoint, or what a server answers, on labelled radiographs: figures, pictures, checks and a report.

    python -m finetune.evaluate --checkpoint runs/latest --data chest_xray --part val
    python -m finetune.evaluate --url 127.0.0.1:8001 --data chest_xray

Writes `report.html` (self-contained), `evaluation.json` and the pictures; for a checkpoint `MODEL_CARD.md` too.
Nothing is fitted here: calibration, operating point, band and novelty limit are judged as they are served.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch
from rich.table import Table

from xray_client import FINDINGS, RESEARCH_USE, XrayClient
from xray_client.console import console, plain_errors

from .data.cache import build_cache
from .data.sources import find_radiographs
from .data.splits import SPLITS_FILE, is_split_of
from .evaluation.evaluation import choose_part, evaluate
from .evaluation.predictors import CheckpointPredictor, Predictor, ServerPredictor
from .models.classifier import ModelConfig, RadiographClassifier
from .models.served_model import checkpoint_folder, load_checkpoint
from .reports.evaluation import write_report

PARTS = ("auto", "test", "val", "all")


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Run folder, checkpoint folder, or `reference`.")
@click.option("--url", help="Instead: address of a Triton that serves the model, host:port.")
@click.option("--model", default="medclip", help="Name of the served model.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Radiographs, as for finetune.run.")
@click.option(
    "--splits",
    type=click.Path(path_type=Path),
    help="splits.csv of the run that trained the model.  [default: the run folder's, if it is of these radiographs]",
)
@click.option("--weights", help="MedCLIP's weights that fine-tuning started from, to judge them beside it.")
@click.option(
    "--part",
    type=click.Choice(PARTS),
    default="auto",
    help="What to judge on; auto = test, else validation of --splits.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/evaluation"), help="Folder of the report.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("runs/cache"), help="Decoded images.")
@click.option(
    "--novel", type=click.Path(path_type=Path), multiple=True, help="Folder of images that are no chest radiographs."
)
@click.option(
    "--check-images", type=click.IntRange(0), default=200, help="Radiographs for robustness and heatmaps; 0 = skip."
)
@click.option("--threshold", type=click.FloatRange(0, 1), help="Operating point.  [default: the checkpoint's, or 0.5]")
@click.option("--seed", default=0, help="Of the bootstrap and of what is drawn for the checks.")
def main(
    checkpoint: Path | None, url: str | None, model: str, data: Path, splits: Path | None, weights: str | None,
    part: str, out: Path, cache: Path, novel: tuple[Path, ...], check_images: int, threshold: float | None, seed: int,
) -> None:  # fmt: skip
    """Command line; see the module's text."""
    with plain_errors(), ExitStack() as stack:
        if (checkpoint is None) == (url is None):
            raise click.UsageError("name either --checkpoint or --url")
        about: dict[str, Any] = {}
        before: RadiographClassifier | None = None
        if checkpoint is not None:
            served, about = load_checkpoint(checkpoint_folder(checkpoint))
            judged: Predictor = CheckpointPredictor(served)
            began = about.get("zero_shot_seed", about.get("training", {}).get("seed"))
            before = _start(served.classifier.config, began, weights)
        else:
            judged = ServerPredictor(stack.enter_context(XrayClient(str(url), model=model)))
        source = find_radiographs(data)
        prepared = build_cache(source.records, judged.preprocessing, source.root, cache)
        if (
            splits is None
            and checkpoint is not None
            and is_split_of(checkpoint / SPLITS_FILE, source.records, source.root)
        ):
            splits = checkpoint / SPLITS_FILE
        chosen, described = choose_part(source, prepared, splits, part)
        evaluation = evaluate(
            judged, prepared, chosen,
            threshold=threshold if threshold is not None else about.get("trust", {}).get("operating_point", 0.5),
            before=before, novel=novel, check_images=check_images, seed=seed,
        )  # fmt: skip
        evaluation.figures["data"] = {"source": source.name, "part": described, "unreadable": prepared.unreadable}
        evaluation.figures["judged"] = f"checkpoint {checkpoint}" if checkpoint else f"model {model} served at {url}"
        page = write_report(evaluation, judged.preprocessing, about, out)
        _show(evaluation.figures)
        console.print(f"report: {page}")
        console.print(RESEARCH_USE)


def _start(config: ModelConfig, seed: int | None, weights: str | None) -> RadiographClassifier | None:
    """The zero-shot network that it all began with; None where that cannot be had again."""
    if weights is None and (config.architecture != "medclip-lite" or seed is None):
        return None
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)  # medclip-lite's projection starts random, from the training's seed
        return RadiographClassifier(config, weights=weights).eval()


def _show(figures: dict[str, Any]) -> None:
    stages = figures["stages"]
    table = Table("", *stages, title=f"{figures['data']['source']}, {figures['data']['part']}")
    for name in stages["after"]:
        cells = [stage.get(name) for stage in stages.values()]
        if isinstance(cells[-1], dict) and "value" in cells[-1]:
            shown = [f"{c['value']:.3f} ({c['low']:.3f} to {c['high']:.3f})" if c else "" for c in cells]
            table.add_row(name.replace("_", " "), *shown)
    console.print(table)
    console.print(f"Findings: {', '.join(f'{n} {FINDINGS[i]}' for i, n in enumerate(stages['after']['findings']))}")


if __name__ == "__main__":
    main()
