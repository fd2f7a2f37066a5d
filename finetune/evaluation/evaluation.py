"""Metrics and checks of a predictor on labelled radiographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.data.cache import Cache
from finetune.data.duplicates import near_duplicates
from finetune.data.records import TEST, VAL, IndexArray, Radiograph, merge_duplicates
from finetune.data.sources import Source
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.models.classifier import RadiographClassifier
from xray_client import LABELS
from xray_client.console import console

from .comparison import Grouping, differences, predictive_values, subgroup_figures
from .evidence import masking_check
from .metrics import Scores, summarise_predictions
from .novelty import novelty_check
from .predictors import Predictions, Predictor, batches
from .robustness import robustness

AUTO, ALL = "auto", "all"
SPLIT_CHOICES = (AUTO, TEST, VAL, ALL)
_DESCRIPTION = {TEST: "test", VAL: "validation, split by patient", ALL: "all radiographs"}


def choose_split(source: Source, prepared: Cache, splits: Path | None, split: str) -> tuple[IndexArray, str]:
    """Choose the radiographs to evaluate on.

    Args:
        source: Source of the radiographs.
        prepared: Their prepared images.
        splits: `splits.csv` of the run that trained the model; None = the source's own test split.
        split: One of SPLIT_CHOICES; "auto" = test if there is any, else validation, else all.

    Returns:
        Indices into `prepared.radiographs`, and a description of the split.

    Raises:
        DataError: The split is empty, or "val" was asked for without `splits`.
    """
    radiographs = prepared.radiographs
    everything = np.arange(len(radiographs))
    test = np.array([i for i, radiograph in enumerate(radiographs) if radiograph.split == TEST], dtype=int)
    given = None
    if splits is not None:
        merged = merge_duplicates(radiographs, prepared.digests, near_duplicates(prepared.images, prepared.rows))
        given = load_splits(splits, merged, source.root)
        test = given.test
    if split == AUTO:
        split = TEST if len(test) else VAL if given is not None else ALL
        if split == ALL:
            console.print(
                "evaluating on all radiographs: if the model was trained on some of them, name the run's --splits",
                style="yellow",
            )
    if split == VAL and given is None:
        raise DataError("a run's splits.csv defines the validation split", remedy="name it with --splits")
    chosen = {TEST: test, VAL: given.val if given else everything, ALL: everything}[split]
    if not len(chosen):
        raise DataError(f"no radiographs in {split}", source=str(source.root), remedy="choose another --split")
    return chosen, _DESCRIPTION[split]


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation: metrics, and the predictions behind the plots.

    Attributes:
        figures: Content of `evaluation.json`.
        stages: Scores of each stage: "before" first if it is known, then "after".
        predictions: Predictions of the evaluated model.
        images: uint8 (n, s, s), prepared radiographs.
        radiographs: The radiographs.
    """

    figures: dict[str, Any]
    stages: dict[str, Scores]
    predictions: Predictions
    images: NDArray[np.uint8]
    radiographs: list[Radiograph]


def evaluate(
    predictor: Predictor, prepared: Cache, chosen: IndexArray, *, threshold: float,
    before: RadiographClassifier | None = None, groupings: Sequence[Grouping] = (), prevalence: float | None = None,
    novel: tuple[Path, ...] = (), check_images: int = 200, seed: int = 0,
) -> Evaluation:  # fmt: skip
    """Evaluate a predictor on labelled radiographs.

    Args:
        predictor: Model to evaluate.
        prepared: Prepared radiographs.
        chosen: Indices into `prepared.radiographs`.
        threshold: Operating point.
        before: Zero-shot classifier to compare with; None = no comparison.
        groupings: Columns of the table to divide the radiographs by.
        prevalence: Share of Pneumonia for which PPV and NPV are given; None = not given.
        novel: Folders of images that are no chest radiographs.
        check_images: Number of radiographs for the checks of robustness and evidence; 0 = skip them.
        seed: Seed of the bootstrap and of the draws in the checks.
    """
    radiographs = [prepared.radiographs[i] for i in chosen]
    images = np.asarray(prepared.images[prepared.rows[chosen]])
    labels, patients = np.array([r.label for r in radiographs]), np.array([r.patient for r in radiographs])
    predictions = predictor.predict(images, "classifying")
    stages: dict[str, Scores] = {}
    if before is not None:
        stages["before"] = Scores(_probability(before, images), labels, patients, 0.5)
    stages["after"] = Scores(predictions.probability, labels, patients, threshold)
    figures: dict[str, Any] = {
        "intervals": "95 %, bootstrap over patients, 1000 resamples",
        "stages": {name: summarise_predictions(scores, seed=seed) for name, scores in stages.items()},
    }
    figures["stages"]["after"] |= summarise_predictions(stages["after"], decision=predictions.decision, seed=seed)
    both_classes = len(np.unique(labels)) == len(LABELS)
    if groupings:
        metadata = [radiograph.metadata for radiograph in radiographs]
        figures["subgroups"] = subgroup_figures(stages["after"], metadata, groupings, seed=seed)
    if prevalence is not None and both_classes:
        values = predictive_values(stages["after"], prevalence, seed=seed)
        figures["predictive_values"] = {"prevalence": prevalence, "figures": values}
    if check_images and both_classes:
        some = np.random.default_rng(seed).permutation(len(images))[:check_images]
        figures["robustness"] = robustness(predictor, images[some], labels[some], threshold)
        figures["masking"] = masking_check(predictor, images[some], labels[some], patients[some], seed=seed)
    figures["novelty"] = novelty_check(predictor, predictions.novelty, novel, seed=seed)
    return Evaluation(figures, stages, predictions, images, radiographs)


def compare(
    evaluation: Evaluation, other: Predictor, prepared: Cache, *, name: str, threshold: float, seed: int
) -> None:
    """Add what another model makes of the same radiographs to the figures, as `against`, with paired differences.

    Args:
        evaluation: Result of the evaluation.
        other: The other model.
        prepared: Radiographs prepared for it; all that were evaluated must be among them.
        name: Its name in the report.
        threshold: Its operating point.
        seed: Seed of the bootstrap.

    Raises:
        DataError: Its reader refuses a radiograph that was evaluated.
    """
    place = {radiograph.path: row for radiograph, row in zip(prepared.radiographs, prepared.rows, strict=True)}
    missing = [radiograph for radiograph in evaluation.radiographs if radiograph.path not in place]
    if missing:
        raise DataError(f"{len(missing)} radiographs cannot be prepared for it", source=name, remedy="leave them out")
    rows = [place[radiograph.path] for radiograph in evaluation.radiographs]
    predictions = other.predict(np.asarray(prepared.images[rows]), "classifying with the other")
    mine = evaluation.stages["after"]
    theirs = Scores(predictions.probability, mine.labels, mine.patients, threshold)
    evaluation.figures["against"] = {
        "model": name,
        "figures": summarise_predictions(theirs, decision=predictions.decision, seed=seed),
        "differences": differences(mine, theirs, seed=seed),
    }


@torch.inference_mode()
def _probability(classifier: RadiographClassifier, images: NDArray[np.uint8]) -> NDArray[Any]:
    prepared = batches(images, "before fine-tuning")
    logits = torch.cat([classifier(torch.from_numpy(batch[:, None].copy())) for batch in prepared])
    probability: NDArray[Any] = torch.softmax(logits, dim=1)[:, 1].numpy()
    return probability
