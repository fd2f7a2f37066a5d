"""Where radiographs come from. What is given with `--data` may be

    chest_xray/               a folder in the layout of the Kaggle set, see `finetune.data`
    radiographs.csv           a table, one radiograph a line
    pneumoniamnist:224        PneumoniaMNIST of 28, 64, 128 or 224 pixels, downloaded by the `medmnist` package

A table has the columns path, label and, where they are known, patient and split:

    path,label,patient,split
    images/a.png,Normal,P001,train
    images/b.dcm,Pneumonia,P002,test

Paths are relative to the table's folder, or absolute. A label is Normal or 0, Pneumonia or 1. A split is train, val or
test; with a `val` in the table its splits are kept as they are, without one a validation part is drawn by patient.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.errors import DataError
from xray_client import LABELS
from xray_client.console import track

from .records import Record, check_classes, file_name, patient_of, scan

MEDMNIST_SIZES = (28, 64, 128, 224)

_COLUMNS = "path and label, and where known patient and split"
_LABELS = {text: label for label, name in enumerate(LABELS) for text in (name.lower(), str(label))}
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
_ZENODO = "https://zenodo.org/records/10519652"
_MEDMNIST = re.compile(r"pneumoniamnist(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Radiographs as they were found.

    Attributes:
        name: What a report calls them.
        root: Files are named relative to this folder; see `finetune.data.file_name`.
        records: The radiographs, in a fixed order.
        own_validation: Their `val` is a part to keep; otherwise it is training material and a part is drawn.
        notes: What a reader of the figures must know, in sentences.
    """

    name: str
    root: Path
    records: list[Record]
    own_validation: bool = False
    notes: tuple[str, ...] = ()


def find_radiographs(source: Path | str, *, medmnist_root: Path | None = None) -> Source:
    """Find the radiographs of a folder, a table or PneumoniaMNIST.

    Args:
        source: As the text of this module says.
        medmnist_root: Where PneumoniaMNIST lies or is downloaded to; None = the package's own, `~/.medmnist`.

    Raises:
        DataError: It is none of them, has not the layout, or a line of the table cannot be understood.
    """
    path = Path(source)
    if (match := _MEDMNIST.fullmatch(str(source).lower())) and not path.exists():
        return _pneumoniamnist(int(match.group(1) or 28), medmnist_root)
    if path.suffix.lower() == ".csv":
        # Absolute, so that a table may name its own folder's files in either way.
        root = path.parent.absolute()
        records = list(_read_table(path, root))
        check_classes(records, source=str(path), remedy=f"a table has the columns {_COLUMNS}")
        own_validation = any(record.folder == "val" for record in records)
        return Source(path.stem, root, records, own_validation, _patient_notes(records))
    records = scan(path)
    return Source(path.resolve().name, path, records, notes=_patient_notes(records))


def _patient_notes(records: list[Record]) -> tuple[str, ...]:
    unknown = sum(not record.patient_known for record in records)
    if not unknown:
        return ()
    return (
        f"{unknown} of {len(records)} radiographs carry no patient and count as patients of their own: if a patient "
        "has several, the figures may be too good.",
    )


def _read_table(path: Path, root: Path) -> Iterator[Record]:
    lines: dict[Path, tuple[int, Record]] = {}
    for line, row in _rows(path):
        record = _record(row, root, f"{path}, line {line}")
        if record.path in lines:
            before, other = lines[record.path]
            if record != other:
                raise DataError(
                    f"{row['path']} is on line {before} already, with another label, patient or split",
                    source=f"{path}, line {line}",
                    remedy="keep the line that is right",
                )
            continue
        lines[record.path] = line, record
        yield record


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and cells of each line that is not empty; a missing cell is the empty text."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            for column in ("path", "label"):
                if column not in reader.fieldnames:
                    raise DataError(f"no column {column!r}", source=str(path), remedy=f"a table has {_COLUMNS}")
            for row in reader:
                yield reader.line_num, {name: cell.strip() for name, cell in row.items() if isinstance(name, str)}
    except FileNotFoundError as err:
        raise DataError("no such file", source=str(path), remedy="name the table with --data") from err
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"cannot be read as a table: {err}", source=str(path), remedy="save it as CSV, UTF-8") from err


def _record(row: dict[str, str], root: Path, where: str) -> Record:
    label, split = _LABELS.get(row["label"].lower()), _SPLITS.get(row.get("split", "train").lower())
    if not row["path"]:
        raise DataError("no path", source=where, remedy="fill it in, or remove the line")
    if label is None:
        raise DataError(f"unknown label {row['label']!r}", source=where, remedy="Normal or 0, Pneumonia or 1")
    if split is None:
        raise DataError(f"unknown split {row['split']!r}", source=where, remedy="train, val or test")
    path = Path(os.path.normpath(root / row["path"]))
    patient = row.get("patient") or patient_of(path)
    return Record(path, label, patient or file_name(path, root), split, patient_known=bool(patient))


def _pneumoniamnist(size: int, root: Path | None) -> Source:
    if size not in MEDMNIST_SIZES:
        sizes = ", ".join(map(str, MEDMNIST_SIZES))
        raise DataError(f"PneumoniaMNIST has no size {size}", remedy=f"one of {sizes}, as in pneumoniamnist:224")
    try:
        import medmnist  # late: it imports torch, and makes its folder
        from medmnist.info import DEFAULT_ROOT
    except ImportError as err:
        raise DataError("PneumoniaMNIST needs a package", remedy="pip install medmnist") from err
    root = root or Path(DEFAULT_ROOT or "medmnist")
    archive = root / ("pneumoniamnist.npz" if size == 28 else f"pneumoniamnist_{size}.npz")
    folder = archive.with_suffix("")
    if not folder.is_dir():
        _extract(medmnist.PneumoniaMNIST, archive, size, folder)
    records = scan(folder)
    note = (
        "PneumoniaMNIST names no patients, and its training and validation parts were drawn by image: radiographs of "
        "one patient may be in both, so the validation figures may be too good."
    )
    return Source(f"PneumoniaMNIST {size}x{size}", folder, records, own_validation=True, notes=(note,))


def _extract(dataset: type, archive: Path, size: int, folder: Path) -> None:
    """Write the images as PNG files in the layout of the Kaggle set, all of them or none."""
    present = archive.exists()
    archive.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=archive.parent))
    try:
        for split in ("train", "val", "test"):
            part = dataset(split=split, root=str(archive.parent), size=size, download=not archive.exists())
            for label in LABELS:
                (staging / split / label.upper()).mkdir(parents=True)
            pairs = zip(part.imgs, np.asarray(part.labels).ravel(), strict=True)
            for i, (pixels, label) in enumerate(track(pairs, f"unpacking {split}", total=len(part.imgs))):
                Image.fromarray(pixels).save(staging / split / LABELS[int(label)].upper() / f"{i:05}.png")
        staging.rename(folder)
    except RuntimeError as err:  # what the package raises when its download failed
        archive.unlink(missing_ok=True)
        raise DataError(
            "PneumoniaMNIST could not be downloaded", source=str(archive), remedy=f"put it there by hand from {_ZENODO}"
        ) from err
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        remedy = "remove it, and it is downloaded again" if present else "try again"
        raise DataError(f"is damaged or cannot be unpacked: {err}", source=str(archive), remedy=remedy) from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)
