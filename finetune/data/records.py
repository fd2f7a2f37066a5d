"""Radiographs on disk -> records with label and patient -> splits in which no patient appears twice.

The layout is that of the Kaggle set "Chest X-Ray Images (Pneumonia)":

    DIR/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg      `test` is optional and only ever used for the last evaluation
    DIR/{NORMAL,PNEUMONIA}/*.jpeg                       works as well: everything is training material

Tables and PneumoniaMNIST come in through `finetune.data.sources`; splits are written and read again by
`finetune.data.splits`.

The 16 images of the official `val` folder are too few to validate on, so `train` and `val` are pooled and a validation
part is drawn by patient.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from finetune.errors import DataError
from xray_client import LABELS

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom"}
TRAINING_FOLDERS = ("train", "val")
TEST_FOLDER = "test"

_LAYOUT = "a folder holds train/NORMAL and train/PNEUMONIA (val and test likewise), or NORMAL and PNEUMONIA"
# person123_bacteria_4.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-1427-0001-0002.jpeg, BACTERIA-1008087-0001.jpeg
_PATIENT_PATTERNS = (
    re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+(?:_\d+)?$"),
    re.compile(r"^((?:NORMAL\d*-)?IM-\d+)-\d+(?:-\d+)?$"),
    re.compile(r"^((?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+$"),
)


@dataclass(frozen=True, slots=True)
class Record:
    """One radiograph: where it lies, its label (index into LABELS), its patient and the folder it was found in."""

    path: Path
    label: int
    patient: str
    folder: str  # "train", "val" or "test"
    patient_known: bool = True  # False: nothing says whose it is, so it counts as a patient of its own


@dataclass(frozen=True, slots=True)
class Splits:
    """Indices into the list of records. No patient is in two of them."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    leaked_patients: tuple[str, ...]  # were on two sides; taken out of training (or of validation, if also in test)


def patient_of(path: Path) -> str | None:
    """The patient that a file name of the Kaggle set carries, or None where the name follows no known pattern."""
    for pattern in _PATIENT_PATTERNS:
        if match := pattern.match(path.stem):
            return match.group(1)
    return None


def scan(root: Path) -> list[Record]:
    """Find every radiograph below `root`, in a fixed order.

    A file whose name carries no patient counts as a patient of its own.

    Raises:
        DataError: `root` is missing, has not the layout, or a class is empty.
    """
    if not root.is_dir():
        raise DataError("no such folder", source=str(root), remedy="name the folder with --data")
    if not any((root / folder).is_dir() for folder in TRAINING_FOLDERS) and (root / "chest_xray").is_dir():
        root = root / "chest_xray"  # as the Kaggle archive unpacks
    found: list[Record] = []
    for folder in (*TRAINING_FOLDERS, TEST_FOLDER):
        found += _scan_classes(root / folder, folder)
    if not any(record.folder in TRAINING_FOLDERS for record in found):
        found += _scan_classes(root, "train")
    check_classes(found, source=str(root), remedy=_LAYOUT)
    return found


def check_classes(records: Sequence[Record], *, source: str, remedy: str) -> None:
    """Raise `DataError` unless both classes have training material."""
    counts = class_counts(record.label for record in records if record.folder in TRAINING_FOLDERS)
    if not any(counts):
        raise DataError("no images to train on", source=source, remedy=remedy)
    for label, count in zip(LABELS, counts, strict=True):
        if count == 0:
            raise DataError(f"no {label} images, only one class", source=source, remedy=remedy)


def _scan_classes(folder: Path, name: str) -> list[Record]:
    if not folder.is_dir():
        return []
    by_label = {child.name.upper(): child for child in sorted(folder.iterdir()) if child.is_dir()}
    return [
        Record(path, label, patient or f"{name}/{label_name}/{path.name}", name, patient_known=patient is not None)
        for label, label_name in enumerate(LABELS)
        if (directory := by_label.get(label_name.upper())) is not None
        for path in sorted(directory.iterdir())
        if _is_image(path)
        # The split's folder is no part of a patient's identity: patients of test are looked for in training.
        for patient in [patient_of(path)]
    ]


def _is_image(path: Path) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    # Hospital archives write DICOM under bare numbers, whose last part looks like a suffix.
    if path.suffix == "" or path.suffix[1:].isdigit():
        try:
            with path.open("rb") as file:
                return file.read(132)[128:] == b"DICM"
        except OSError:
            return False
    return False


def file_name(path: Path, root: Path) -> str:
    """What every written list calls a radiograph: its path relative to `root`, absolute where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def class_counts(labels: Iterable[int]) -> tuple[int, ...]:
    """How many of each label, in the order of LABELS."""
    return tuple(np.bincount(np.fromiter(labels, dtype=int), minlength=len(LABELS)).tolist())


def merge_duplicates(
    records: Sequence[Record], digests: Sequence[str], near: Iterable[Sequence[int]] = ()
) -> list[Record]:
    """Copies of a radiograph belong to one patient, whatever their names say: none may be on both sides of a split.

    Args:
        records: The radiographs.
        digests: For each, the SHA-256 of its file; equal digests are copies.
        near: Pairs of indices into `records` that are copies too; see `finetune.data.duplicates.near_duplicates`.

    Returns:
        The records in the same order; copies carry the patient of the first of them, and so do all other radiographs
        of their patients.
    """
    alias: dict[str, str] = {}  # patient -> the patient it is merged into

    def root(patient: str) -> str:
        while patient in alias:
            patient = alias[patient]
        return patient

    first: dict[str, int] = {}
    copies = [(first.setdefault(digest, i), i) for i, digest in enumerate(digests)]
    for one, other, *_ in (*copies, *near):
        kept, merged = root(records[one].patient), root(records[other].patient)
        if kept != merged:
            alias[merged] = kept
    return [replace(record, patient=root(record.patient)) for record in records]


def split_by_patient(records: Sequence[Record], *, val_fraction: float, seed: int) -> Splits:
    """Draw a validation part by patient, stratified by class; `test` is the official folder, where there is one.

    A patient who is also in `test` is taken out of training and validation, never the other way round.

    Args:
        records: What `scan` found, possibly after `merge_duplicates`.
        val_fraction: Share of the training patients to validate on, 0.02 to 0.5.
        seed: Same seed and records, same split.

    Raises:
        DataError: Too few patients of a class to have some on each side.
    """
    test_patients = {record.patient for record in records if record.folder == TEST_FOLDER}
    pool = np.array([i for i, r in enumerate(records) if r.folder != TEST_FOLDER], dtype=int)
    leaked = sorted({records[i].patient for i in pool} & test_patients)
    pool = np.array([i for i in pool if records[i].patient not in test_patients], dtype=int)
    labels = np.array([records[i].label for i in pool], dtype=int)
    patients = np.array([records[i].patient for i in pool], dtype=object)
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
    test = np.array([i for i, record in enumerate(records) if record.folder == TEST_FOLDER], dtype=int)
    return Splits(pool[train], pool[val], test, tuple(leaked))


def _patients_per_class(patients: np.ndarray, labels: np.ndarray) -> list[int]:
    seen: dict[int, set[str]] = defaultdict(set)
    for patient, label in zip(patients, labels, strict=True):
        seen[int(label)].add(patient)
    return [len(seen[label]) for label in range(len(LABELS))]
