"""Metrics and checks of a predictor on labelled radiographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune.data.cache import Cache
from finetune.data.duplicates import near_duplicates
from finetune.data.records import TEST_FOLDER, Record, merge_duplicates
from finetune.data.sources import Source
from finetune.data.splits import load_splits
from finetune.errors import DataError
from finetune.models.classifier import RadiographClassifier
from xray_client.console import console

from .metrics import Scores, summarise_answers
from .predictors import Answers, Predictor, batches
from .robustness import masking_check, novelty_check, robustness


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
    judged: Predictor, prepared: Cache, chosen: np.ndarray, *, threshold: float,
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
    prepared = batches(images, "before fine-tuning")
    logits = torch.cat([classifier(torch.from_numpy(batch[:, None].copy())) for batch in prepared])
    return torch.softmax(logits, dim=1)[:, 1].numpy()
