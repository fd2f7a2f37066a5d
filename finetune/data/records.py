"""Radiographs with their labels and patients, and splits in which no patient appears twice.

The folder layout is that of the Kaggle set "Chest X-Ray Images (Pneumonia)":

    DIR/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg      `test` is optional and only used for the final evaluation
    DIR/{NORMAL,PNEUMONIA}/*.jpeg                       also works: everything counts as training data

`finetune.data.sources` reads tables and PneumoniaMNIST as well; `finetune.data.splits` saves and loads splits.

The 16 images of the official `val` folder are too few to validate on, so `train` and `val` are pooled and a validation
split is drawn by patient.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from finetune.errors import DataError
from xray_client import LABELS
from xray_client.image_files import is_image_file

# The names of the splits, in code, in files and in tables.
TRAIN, VAL, TEST = SPLIT_NAMES = ("train", "val", "test")
# Spellings that files may use; earlier releases wrote "validation".
SPLIT_BY_SPELLING = {**{name: name for name in SPLIT_NAMES}, "validation": VAL}

IndexArray = NDArray[np.int64]

_LAYOUT = "a folder holds train/NORMAL and train/PNEUMONIA (val and test likewise), or NORMAL and PNEUMONIA"
# person123_bacteria_4.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-1427-0001-0002.jpeg, BACTERIA-1008087-0001.jpeg
_PATIENT_PATTERNS = (
    re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+(?:_\d+)?$"),
    re.compile(r"^((?:NORMAL\d*-)?IM-\d+)-\d+(?:-\d+)?$"),
    re.compile(r"^((?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+$"),
)


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


def patient_of(path: Path) -> str | None:
    """Return the patient encoded in a file name of the Kaggle set; None if the name follows no known pattern."""
    for pattern in _PATIENT_PATTERNS:
        if match := pattern.match(path.stem):
            return match.group(1)
    return None


def scan(root: Path) -> list[Radiograph]:
    """Find every radiograph below `root`, in a fixed order.

    A file whose name carries no patient counts as a patient of its own.

    Raises:
        DataError: `root` is missing, has not the layout, or a class is empty.
    """
    if not root.is_dir():
        raise DataError("no such folder", source=str(root), remedy="name the folder with --data")
    if not any((root / split).is_dir() for split in (TRAIN, VAL)) and (root / "chest_xray").is_dir():
        root = root / "chest_xray"  # as the Kaggle archive unpacks
    found: list[Radiograph] = []
    for split in SPLIT_NAMES:
        found += _scan_classes(root / split, split)
    if all(radiograph.split == TEST for radiograph in found):
        found += _scan_classes(root, TRAIN)
    check_classes(found, source=str(root), remedy=_LAYOUT)
    return found


def check_classes(radiographs: Sequence[Radiograph], *, source: str, remedy: str) -> None:
    """Raise `DataError` unless both classes have radiographs to train on."""
    counts = class_counts(radiograph.label for radiograph in radiographs if radiograph.split != TEST)
    if not any(counts):
        raise DataError("no images to train on", source=source, remedy=remedy)
    for label, count in zip(LABELS, counts, strict=True):
        if count == 0:
            raise DataError(f"no {label} images, only one class", source=source, remedy=remedy)


def _scan_classes(folder: Path, split: str) -> list[Radiograph]:
    if not folder.is_dir():
        return []
    by_label = {child.name.upper(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return [
        Radiograph(
            path, label, patient or f"{split}/{label_name}/{path.name}", split, patient_known=patient is not None
        )
        for label, label_name in enumerate(LABELS)
        if (directory := by_label.get(label_name.upper())) is not None
        for path in sorted(directory.iterdir())
        if path.is_file() and is_image_file(path)
        # A known patient's identity leaves out the split's folder: test patients are looked for in training.
        for patient in [patient_of(path)]
    ]


def file_name(path: Path, root: Path) -> str:
    """Return a radiograph's name in written lists: its path relative to `root`, absolute if it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


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
        radiographs: Result of `scan`, possibly after `merge_duplicates`.
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
