"""Judge a checkpoint, or what a server answers, on labelled radiographs: figures, pictures, checks and a report.

    python -m finetune.evaluate --checkpoint runs/latest --data chest_xray --part val
    python -m finetune.evaluate --url 127.0.0.1:8001 --data chest_xray

Writes `report.html` (self-contained), `evaluation.json` and the pictures; for a checkpoint `MODEL_CARD.md` too.
Nothing is fitted here: calibration, operating point, band and novelty limit are judged as they are served.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
import torch
from rich.table import Table

from xray_build.console import console, plain_errors, track
from xray_client import FINDINGS, RESEARCH_USE, Prediction, Preprocessing, XrayClient

from .cache import Cache, build_cache
from .checks import masking_check, novelty_check, robustness
from .data import TEST_FOLDER, Record, merge_duplicates
from .duplicates import near_duplicates
from .errors import DataError
from .evaluate_report import write_report
from .inputs import Source, find_radiographs
from .metrics import Scores, summarise_answers
from .model import ModelConfig, RadiographClassifier
from .served import ServedModel, checkpoint_folder, load_checkpoint
from .splits import SPLITS_FILE, is_split_of, load_splits

PARTS = ("auto", "test", "val", "all")
_BATCH = 32


@dataclass(frozen=True)
class Answers:
    """What the served graph says of n radiographs.

    Attributes:
        probability: float (n,), of Pneumonia.
        decision: int (n,), index into FINDINGS.
        heatmap: float (n, h, w), log-odds.
        novelty: float (n,), 1 = the limit.
    """

    probability: np.ndarray
    decision: np.ndarray
    heatmap: np.ndarray
    novelty: np.ndarray


class Judged(Protocol):
    """Whatever answers like the served model."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How it wants its radiographs."""
        ...

    def answer(self, images: np.ndarray, what: str) -> Answers:
        """Prepared radiographs uint8 (n, s, s) -> answers; `what` names the work on the progress bar."""
        ...


class Checkpoint:
    """The served graph in PyTorch."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.preprocessing = model.eval(), model.classifier.config.preprocessing

    @torch.inference_mode()
    def answer(self, images: np.ndarray, what: str) -> Answers:
        """See `Judged`."""
        parts = [self.model(torch.from_numpy(batch[:, None].copy())) for batch in _batches(images, what)]
        probability, decision, heatmap, novelty = (torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
        return Answers(probability[:, 1], decision[:, 0], heatmap, novelty[:, 0])


class Server:
    """A model behind Triton. A radiograph that is not answered raises: figures over a part would mislead."""

    def __init__(self, client: XrayClient) -> None:
        self.client, self.preprocessing = client, client.preprocessing

    def answer(self, images: np.ndarray, what: str) -> Answers:
        """See `Judged`."""
        found: list[Prediction] = []
        for batch in _batches(images, what):
            for result in self.client.classify_many([image[None] for image in batch], heatmap=True):
                if not isinstance(result, Prediction):
                    raise result.error
                found.append(result)
        return Answers(
            np.array([p.probability for p in found]),
            np.array([p.decision for p in found]),
            np.stack([np.asarray(p.heatmap) for p in found]),
            np.array([p.novelty for p in found]),
        )


def _batches(images: np.ndarray, what: str) -> Iterator[np.ndarray]:
    starts = range(0, len(images), _BATCH)
    for start in track(starts, what, total=len(starts)):
        yield images[start : start + _BATCH]


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
            judged: Judged = Checkpoint(served)
            began = about.get("zero_shot_seed", about.get("training", {}).get("seed"))
            before = _start(served.classifier.config, began, weights)
        else:
            judged = Server(stack.enter_context(XrayClient(str(url), model=model)))
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


def choose_part(source: Source, prepared: Cache, splits: Path | None, part: str) -> tuple[np.ndarray, str]:
    """Indices into `prepared.records` of what is judged, and what that is in words.

    Raises:
        DataError: The part is empty, or "val" without the split that says what it is.
    """
    records = prepared.records
    everything = np.arange(len(records))
    of_folder = np.array([i for i, record in enumerate(records) if record.folder == TEST_FOLDER], dtype=int)
    given = None
    if splits is not None:
        merged = merge_duplicates(records, prepared.digests, near_duplicates(prepared.images, prepared.rows))
        given = load_splits(splits, merged, source.root)
        of_folder = given.test
    if part == "auto":
        part = "test" if len(of_folder) else "val" if given is not None else "all"
        if part == "all":
            console.print(
                "judged on all radiographs: if the model was trained on some of them, name the run's --splits",
                style="yellow",
            )
    if part == "val" and given is None:
        raise DataError("validation is what a run's splits.csv says", remedy="name it with --splits")
    chosen = {"test": of_folder, "val": given.val if given else everything, "all": everything}[part]
    if not len(chosen):
        raise DataError(f"no radiographs in {part}", source=str(source.root), remedy="choose another --part")
    if len({records[i].label for i in chosen}) < 2:
        raise DataError(f"{part} has one class only", source=str(source.root), remedy="both classes are needed")
    how = {"test": "test", "val": "validation, split by patient", "all": "all radiographs"}[part]
    return chosen, how


@dataclass(frozen=True)
class Evaluation:
    """Figures, and what the pictures are drawn from.

    Attributes:
        figures: As written to `evaluation.json`.
        stages: Scores, "before" first where there is one, then "after".
        answers: What was said of each radiograph.
        images: uint8 (n, s, s), the radiographs.
        records: Their files.
    """

    figures: dict[str, Any]
    stages: dict[str, Scores]
    answers: Answers
    images: np.ndarray
    records: list[Record]


def evaluate(
    judged: Judged, prepared: Cache, chosen: np.ndarray, *, threshold: float,
    before: RadiographClassifier | None = None, novel: tuple[Path, ...] = (), check_images: int = 200, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Judge on the radiographs of `chosen`, indices into the records of `prepared`."""
    records = [prepared.records[i] for i in chosen]
    images = np.asarray(prepared.images[prepared.rows[chosen]])
    labels, patients = np.array([r.label for r in records]), np.array([r.patient for r in records])
    answers = judged.answer(images, "classifying")
    stages: dict[str, Scores] = {}
    if before is not None:
        stages["before"] = Scores(_probability(before, images), labels, patients, 0.5)
    stages["after"] = Scores(answers.probability, labels, patients, threshold)
    figures: dict[str, Any] = {
        "intervals": "95 %, bootstrap over patients, 1000 resamples",
        "stages": {name: summarise_answers(scores, seed=seed) for name, scores in stages.items()},
    }
    figures["stages"]["after"] |= summarise_answers(stages["after"], decision=answers.decision, seed=seed)
    if check_images:
        some = np.random.default_rng(seed).permutation(len(images))[:check_images]
        figures["robustness"] = robustness(judged, images[some], labels[some], threshold)
        figures["masking"] = masking_check(judged, images[some], labels[some], patients[some], seed=seed)
    figures["novelty"] = novelty_check(judged, answers.novelty, novel, seed=seed)
    return Evaluation(figures, stages, answers, images, records)


@torch.inference_mode()
def _probability(classifier: RadiographClassifier, images: np.ndarray) -> np.ndarray:
    batches = _batches(images, "before fine-tuning")
    logits = torch.cat([classifier(torch.from_numpy(batch[:, None].copy())) for batch in batches])
    return torch.softmax(logits, dim=1)[:, 1].numpy()


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
