"""Radiographs with their labels and patients, and splits in which no patient appears twice.

`finetune.data.sources` finds radiographs in folders, tables and PneumoniaMNIST; `finetune.data.splits` saves and loads
splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from finetune.errors import DataError
from xray_client import LABELS

# The names of the splits, in code, in files and in tables.
TRAIN, VAL, TEST = SPLIT_NAMES = ("train", "val", "test")
# Spellings that files may use; earlier releases wrote "validation".
SPLIT_BY_SPELLING = {**{name: name for name in SPLIT_NAMES}, "valid": VAL, "validation": VAL}

IndexArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One image of one patient, with what is known about it.

    Attributes:
        path: Image file.
        label: Index into LABELS.
        patient: Patient identifier.
        split: Split that the source assigns, one of SPLIT_NAMES.
        patient_known: False if the source names no patient; the radiograph then counts as a patient of its own.
        metadata: Further columns of the table that lists it, by name.
    """

    path: Path
    label: int
    patient: str
    split: str
    patient_known: bool = True
    metadata: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file, folder or line of the source that is not taken.

    Attributes:
        file: Its name in written lists; a folder ends in a slash and stands for all that is in it.
        reason: Words that are the same for all of a kind, so that they can be counted.
        files: Number of files, of a folder those in it.
    """

    file: str
    reason: str
    files: int = 1


@dataclass(frozen=True, slots=True)
class Splits:
    """Indices into a list of radiographs for each split. No patient is in two splits.

    Attributes:
        train: int (n,).
        val: int (n,).
        test: int (n,), empty without a test split.
        leaked_patients: Patients found in several splits and removed from training (or validation, if also in test).
    """

    train: IndexArray
    val: IndexArray
    test: IndexArray
    leaked_patients: tuple[str, ...]

    def indices(self, split: str) -> IndexArray:
        """Return the indices of the split of that name, one of SPLIT_NAMES."""
        return {TRAIN: self.train, VAL: self.val, TEST: self.test}[split]


def check_classes(radiographs: Sequence[Radiograph], *, source: str, remedy: str) -> None:
    """Raise `DataError` unless both classes have radiographs to train on."""
    counts = class_counts(radiograph.label for radiograph in radiographs if radiograph.split != TEST)
    if not any(counts):
        raise DataError("no images to train on", source=source, remedy=remedy)
    for label, count in zip(LABELS, counts, strict=True):
        if count == 0:
            raise DataError(f"no {label} images, only one class", source=source, remedy=remedy)


def class_counts(labels: Iterable[int]) -> tuple[int, ...]:
    """Count each label, in the order of LABELS."""
    return tuple(np.bincount(np.fromiter(labels, dtype=int), minlength=len(LABELS)).tolist())


def merge_duplicates(
    radiographs: Sequence[Radiograph], digests: Sequence[str], near: Iterable[Sequence[int]] = ()
) -> list[Radiograph]:
    """Assign duplicates to one patient, whatever their names say, so that no split separates them.

    Args:
        radiographs: The radiographs.
        digests: SHA-256 of each file; equal digests are duplicates.
        near: Pairs of indices of further duplicates; see `finetune.data.duplicates.near_duplicates`.

    Returns:
        The radiographs in the same order; duplicates carry the patient of the first of them, and so do all other
        radiographs of their patients.
    """
    alias: dict[str, str] = {}  # patient -> the patient it is merged into

    def root(patient: str) -> str:
        while patient in alias:
            patient = alias[patient]
        return patient

    first: dict[str, int] = {}
    copies = [(first.setdefault(digest, i), i) for i, digest in enumerate(digests)]
    for one, other, *_ in (*copies, *near):
        kept, merged = root(radiographs[one].patient), root(radiographs[other].patient)
        if kept != merged:
            alias[merged] = kept
    return [replace(radiograph, patient=root(radiograph.patient)) for radiograph in radiographs]


def split_by_patient(radiographs: Sequence[Radiograph], *, val_fraction: float, seed: int) -> Splits:
    """Draw a validation split by patient, stratified by class; `test` is kept as given, if there is one.

    A patient who is also in `test` is removed from training and validation, never the other way round.

    Args:
        radiographs: Radiographs of a source, possibly after `merge_duplicates`.
        val_fraction: Share of the training patients to validate on, 0.02 to 0.5.
        seed: Seed of the draw; the same seed and radiographs give the same split.

    Raises:
        DataError: A class has too few patients to appear in both splits.
    """
    test_patients = {radiograph.patient for radiograph in radiographs if radiograph.split == TEST}
    pool = np.array([i for i, r in enumerate(radiographs) if r.split != TEST], dtype=int)
    leaked = sorted({radiographs[i].patient for i in pool} & test_patients)
    pool = np.array([i for i in pool if radiographs[i].patient not in test_patients], dtype=int)
    labels = np.array([radiographs[i].label for i in pool], dtype=int)
    patients = np.array([radiographs[i].patient for i in pool], dtype=object)
    folds = round(1 / val_fraction)
    patients_per_class = _patients_per_class(patients, labels)
    for label, count in zip(LABELS, patients_per_class, strict=True):
        if count < folds:
            raise DataError(
                f"{count} {label} patients are too few to validate on one in {folds}",
                remedy="add radiographs or raise --val-fraction",
            )
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    train, val = next(iter(splitter.split(pool, labels, patients)))
    test = np.array([i for i, radiograph in enumerate(radiographs) if radiograph.split == TEST], dtype=int)
    return Splits(pool[train], pool[val], test, tuple(leaked))


def _patients_per_class(patients: NDArray[np.object_], labels: IndexArray) -> list[int]:
    seen: dict[int, set[str]] = defaultdict(set)
    for patient, label in zip(patients, labels, strict=True):
        seen[int(label)].add(patient)
    return [len(seen[label]) for label in range(len(LABELS))]
