"""Splits that are given rather than drawn: by the data's own parts, or by the `splits.csv` of an earlier run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from finetune.errors import DataError
from xray_client import LABELS

from .records import TEST_FOLDER, Record, Splits, class_counts, file_name

LEFT_OUT = "left out"
SPLITS_FILE = "splits.csv"  # in a run folder
_PART_OF = {"train": "train", "val": "val", "validation": "val", "test": "test", LEFT_OUT: LEFT_OUT}
_WRITTEN_AS = {"train": "train", "val": "validation", "test": "test"}


def split_as_given(records: Sequence[Record]) -> Splits:
    """Keep the parts that the data came with.

    A patient in two parts stays in test before validation, and in validation before training; what is taken away is in
    no part.

    Raises:
        DataError: Training or validation lacks a class.
    """
    patients: dict[str, set[str]] = {}
    for record in records:
        patients.setdefault(record.folder, set()).add(record.patient)
    test = patients.get(TEST_FOLDER, set())
    held_out = {"train": test | patients.get("val", set()), "val": test, TEST_FOLDER: set()}
    parts = [LEFT_OUT if record.patient in held_out[record.folder] else record.folder for record in records]
    return _splits(records, parts, source="the splits that the data came with")


def save_splits(
    path: Path,
    records: Sequence[Record],
    splits: Splits,
    root: Path,
    *,
    probability: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write one line a radiograph: file, label, patient, split and, where it was scored, probability of Pneumonia.

    Args:
        path: The CSV to write.
        records: What was split.
        splits: Indices into `records`; those in no part are written as "left out", so that the file accounts for all.
        root: Files are named relative to it.
        probability: For "train", "val" or "test", float (n,) in the order of the part; adds the column.
    """
    scored = probability or {}
    rows: list[list[object]] = []
    for name, written in _WRITTEN_AS.items():
        part = getattr(splits, name)
        for i, value in zip(part, scored.get(name, [None] * len(part)), strict=True):
            rows.append([*_described(records[i], root), written, value])
    taken = {int(i) for name in _WRITTEN_AS for i in getattr(splits, name)}
    rows += [[*_described(record, root), LEFT_OUT, None] for i, record in enumerate(records) if i not in taken]
    columns: list[object] = ["file", "label", "patient", "split", "probability"]
    width = len(columns) if probability is not None else len(columns) - 1
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row[:width] for row in [columns, *rows])


def _described(record: Record, root: Path) -> list[object]:
    return [file_name(record.path, root), LABELS[record.label], record.patient]


def load_splits(path: Path, records: Sequence[Record], root: Path) -> Splits:
    """Split `records` as a file says that `save_splits` wrote.

    Raises:
        DataError: It cannot be read, lacks files or has others, puts a patient in two parts, or training or validation
            lacks a class.
    """
    given, patients = _read(path)
    names = [file_name(record.path, root) for record in records]
    if new := [name for name in names if name not in given]:
        raise DataError(
            f"{len(new)} of {len(names)} radiographs are not in it: {_some(new)}",
            source=str(path),
            remedy="add a line for each, or leave --splits away to draw a new split",
        )
    if missing := sorted(given.keys() - set(names)):
        raise DataError(
            f"{len(missing)} of its {len(given)} radiographs are missing or unreadable: {_some(missing)}",
            source=str(path),
            remedy="bring them back, remove their lines, or leave --splits away to draw a new split",
        )
    parts = [given[name] for name in names]
    # By the file's word for it and by the records', which know of copies that go by other names.
    _check_patients([*patients, *((record.patient, part) for record, part in zip(records, parts, strict=True))], path)
    return _splits(records, parts, source=str(path))


def is_split_of(path: Path, records: Sequence[Record], root: Path) -> bool:
    """Whether there is a file at `path` that `save_splits` wrote of these radiographs, or of some of them."""
    return path.is_file() and not _read(path)[0].keys().isdisjoint(file_name(record.path, root) for record in records)


def _read(path: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Part of each file, and (patient, part) of each line."""
    given: dict[str, str] = {}
    patients: list[tuple[str, str]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            for column in ("file", "split"):
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"no column {column!r}", source=str(path), remedy="name a run's splits.csv")
            for row in reader:
                where, part = f"{path}, line {reader.line_num}", _PART_OF.get(row["split"].strip().lower())
                if part is None:
                    remedy = f"one of {', '.join(_PART_OF)}"
                    raise DataError(f"unknown split {row['split']!r}", source=where, remedy=remedy)
                if given.setdefault(row["file"], part) != part:
                    raise DataError(f"{row['file']} is in another split above", source=where, remedy="keep one line")
                if row.get("patient"):
                    patients.append((row["patient"], part))
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        reason = getattr(err, "strerror", None) or err
        raise DataError(f"cannot be read: {reason}", source=str(path), remedy="name a run's splits.csv") from err
    return given, patients


def _check_patients(patients: Iterable[tuple[str, str]], path: Path) -> None:
    parts: dict[str, set[str]] = {}
    for patient, part in patients:
        if part != LEFT_OUT:
            parts.setdefault(patient, set()).add(part)
    if torn := sorted(patient for patient, of_patient in parts.items() if len(of_patient) > 1):
        between = " and ".join(_WRITTEN_AS[part] for part in _WRITTEN_AS if part in parts[torn[0]])
        raise DataError(
            f"{len(torn)} patients are in two parts: {_some(torn)} ({torn[0]} in {between})",
            source=str(path),
            remedy="give all radiographs of a patient the same split; copies of a radiograph count as one patient",
        )


def _splits(records: Sequence[Record], parts: Sequence[str], *, source: str) -> Splits:
    for name in ("train", "val"):
        counts = class_counts(record.label for record, part in zip(records, parts, strict=True) if part == name)
        for label, count in zip(LABELS, counts, strict=True):
            if count == 0:
                raise DataError(
                    f"no {label} radiographs in {_WRITTEN_AS[name]}",
                    source=source,
                    remedy="training and validation need both classes",
                )
    indices = {name: np.array([i for i, part in enumerate(parts) if part == name], dtype=int) for name in _WRITTEN_AS}
    left_out = {record.patient for record, part in zip(records, parts, strict=True) if part == LEFT_OUT}
    return Splits(indices["train"], indices["val"], indices["test"], tuple(sorted(left_out)))


def _some(names: Sequence[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
