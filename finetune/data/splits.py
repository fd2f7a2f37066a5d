"""Predefined splits: taken from the data itself, or from the `splits.csv` of an earlier run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import DataError
from xray_client import LABELS

from .names import ENCODING_ERRORS, file_name, shown
from .records import SPLIT_BY_SPELLING, SPLIT_NAMES, TEST, TRAIN, VAL, Radiograph, Splits, class_counts

LEFT_OUT = "left out"


def split_as_given(radiographs: Sequence[Radiograph]) -> Splits:
    """Keep the splits that the data came with.

    A patient in several splits stays in test rather than validation, and in validation rather than training; the
    radiographs removed from the others are in no split.

    Raises:
        DataError: Training or validation lacks a class.
    """
    patients: dict[str, set[str]] = {name: set() for name in SPLIT_NAMES}
    for radiograph in radiographs:
        patients[radiograph.split].add(radiograph.patient)
    held_out = {TRAIN: patients[TEST] | patients[VAL], VAL: patients[TEST], TEST: set()}
    names = [LEFT_OUT if r.patient in held_out[r.split] else r.split for r in radiographs]
    return _splits(radiographs, names, source="the splits that the data came with")


def save_splits(
    path: Path,
    radiographs: Sequence[Radiograph],
    splits: Splits,
    root: Path,
    *,
    probability: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write one line per radiograph: file, label, patient, split and, if it was scored, probability of Pneumonia.

    Args:
        path: CSV file to write.
        radiographs: Radiographs that were split.
        splits: Indices into `radiographs`; those in no split are written as "left out", so that the file is complete.
        root: Folder that file names are relative to.
        probability: Split name -> float (n,) in the order of the split; adds the column.
    """
    scored = probability or {}
    rows: list[list[object]] = []
    for name in SPLIT_NAMES:
        indices = splits.indices(name)
        for i, value in zip(indices, scored.get(name, [None] * len(indices)), strict=True):
            rows.append([*_described(radiographs[i], root), name, value])
    taken = {int(i) for name in SPLIT_NAMES for i in splits.indices(name)}
    rows += [[*_described(r, root), LEFT_OUT, None] for i, r in enumerate(radiographs) if i not in taken]
    columns: list[object] = ["file", "label", "patient", "split", "probability"]
    width = len(columns) if probability is not None else len(columns) - 1
    with path.open("w", newline="", encoding="utf-8", errors=ENCODING_ERRORS) as file:
        csv.writer(file).writerows(row[:width] for row in [columns, *rows])


def _described(radiograph: Radiograph, root: Path) -> list[object]:
    return [file_name(radiograph.path, root), LABELS[radiograph.label], radiograph.patient]


def load_splits(path: Path, radiographs: Sequence[Radiograph], root: Path) -> Splits:
    """Split `radiographs` according to a file written by `save_splits`.

    Raises:
        DataError: The file cannot be read, does not list exactly these radiographs, puts a patient in two splits, or
            leaves training or validation without a class.
    """
    given, patients = _read(path)
    files = [file_name(radiograph.path, root) for radiograph in radiographs]
    if new := [file for file in files if file not in given]:
        raise DataError(
            f"{len(new)} of {len(files)} radiographs are not in it: {_some(new)}",
            source=str(path),
            remedy="add a line for each, or leave out --splits to draw a new split",
        )
    if missing := sorted(given.keys() - set(files)):
        raise DataError(
            f"{len(missing)} of its {len(given)} radiographs are missing or unreadable: {_some(missing)}",
            source=str(path),
            remedy="restore them, remove their lines, or leave out --splits to draw a new split",
        )
    names = [given[file] for file in files]
    # Both the file's patients and the radiographs' own: duplicates under other names have been merged there.
    _check_patients([*patients, *((r.patient, name) for r, name in zip(radiographs, names, strict=True))], path)
    return _splits(radiographs, names, source=str(path))


def is_split_of(path: Path, radiographs: Sequence[Radiograph], root: Path) -> bool:
    """Return True if a file written by `save_splits` exists at `path` and lists any of these radiographs."""
    return path.is_file() and not _read(path)[0].keys().isdisjoint(file_name(r.path, root) for r in radiographs)


def _read(path: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the split of each file, and (patient, split) of each line."""
    given: dict[str, str] = {}
    patients: list[tuple[str, str]] = []
    known = {**SPLIT_BY_SPELLING, LEFT_OUT: LEFT_OUT}
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=ENCODING_ERRORS) as file:
            reader = csv.DictReader(file, restval="")
            for column in ("file", "split"):
                if column not in (reader.fieldnames or ()):
                    raise DataError(f"no column {column!r}", source=str(path), remedy="name a run's splits.csv")
            for row in reader:
                where, split = f"{path}, line {reader.line_num}", known.get(row["split"].strip().lower())
                if split is None:
                    remedy = f"one of {', '.join((*SPLIT_NAMES, LEFT_OUT))}"
                    raise DataError(f"unknown split {row['split']!r}", source=where, remedy=remedy)
                if given.setdefault(row["file"], split) != split:
                    raise DataError(
                        f"{shown(row['file'])} is in another split above", source=where, remedy="keep one line"
                    )
                if row.get("patient"):
                    patients.append((row["patient"], split))
    except (OSError, csv.Error) as err:
        reason = getattr(err, "strerror", None) or err
        raise DataError(f"cannot be read: {reason}", source=str(path), remedy="name a run's splits.csv") from err
    return given, patients


def _check_patients(patients: Iterable[tuple[str, str]], path: Path) -> None:
    splits_of: dict[str, set[str]] = {}
    for patient, split in patients:
        if split != LEFT_OUT:
            splits_of.setdefault(patient, set()).add(split)
    if overlapping := sorted(patient for patient, splits in splits_of.items() if len(splits) > 1):
        first = overlapping[0]
        places = " and ".join(name for name in SPLIT_NAMES if name in splits_of[first])
        raise DataError(
            f"{len(overlapping)} patients are in two splits: {_some(overlapping)} ({shown(first)} in {places})",
            source=str(path),
            remedy="give all radiographs of a patient the same split; duplicates count as one patient",
        )


def _splits(radiographs: Sequence[Radiograph], names: Sequence[str], *, source: str) -> Splits:
    for name in (TRAIN, VAL):
        counts = class_counts(r.label for r, split in zip(radiographs, names, strict=True) if split == name)
        for label, count in zip(LABELS, counts, strict=True):
            if count == 0:
                raise DataError(
                    f"no {label} radiographs in {name}",
                    source=source,
                    remedy="training and validation need both classes",
                )
    train, val, test = (
        np.array([i for i, split in enumerate(names) if split == name], dtype=int) for name in SPLIT_NAMES
    )
    left_out = {r.patient for r, split in zip(radiographs, names, strict=True) if split == LEFT_OUT}
    return Splits(train, val, test, tuple(sorted(left_out)))


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(shown(name) for name in names[:most]) + (", ..." if len(names) > most else "")
