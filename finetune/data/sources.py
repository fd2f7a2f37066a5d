"""Sources of radiographs. The option `--data` accepts

    chest_xray/               a folder in the layout of the Kaggle set, see `finetune.data.records`
    radiographs.csv           a table, one radiograph per line
    pneumoniamnist:224        PneumoniaMNIST of 28, 64, 128 or 224 pixels, downloaded by the `medmnist` package

A table has the columns path and label and, if known, patient and split; further columns are kept as metadata:

    path,label,patient,split
    images/a.png,Normal,P001,train
    images/b.dcm,Pneumonia,P002,test

Paths are relative to the table's folder, or absolute. A label is Normal or 0, Pneumonia or 1. A split is train, val or
test. A table with a `val` split keeps its splits; otherwise a validation split is drawn by patient.
"""

from __future__ import annotations

import csv
import os
import re
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
from xray_client.files import new_folder

from .records import SPLIT_BY_SPELLING, SPLIT_NAMES, TRAIN, VAL, Radiograph, check_classes, file_name, patient_of, scan

MEDMNIST_SIZES = (28, 64, 128, 224)

_COLUMNS = "path and label, and if known patient and split"
_LABELS = {text: label for label, name in enumerate(LABELS) for text in (name.lower(), str(label))}
_ZENODO = "https://zenodo.org/records/10519652"
_MEDMNIST = re.compile(r"pneumoniamnist(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Radiographs of one folder, table or public set.

    Attributes:
        name: Name for reports.
        root: Folder that file names are relative to; see `finetune.data.records.file_name`.
        radiographs: The radiographs, in a fixed order.
        has_val: Keep the `val` split; False pools it with training and draws a validation split.
        notes: Caveats for readers of the metrics, in sentences.
    """

    name: str
    root: Path
    radiographs: list[Radiograph]
    has_val: bool = False
    notes: tuple[str, ...] = ()


def find_radiographs(source: Path | str, *, medmnist_root: Path | None = None) -> Source:
    """Find the radiographs of a folder, a table or PneumoniaMNIST.

    Args:
        source: Folder, table or name of a set, as described in the module's docstring.
        medmnist_root: Folder that holds PneumoniaMNIST or receives its download; None = the package's, `~/.medmnist`.

    Raises:
        DataError: The source is none of these, has another layout, or a line of the table is invalid.
    """
    path = Path(source)
    if (match := _MEDMNIST.fullmatch(str(source).lower())) and not path.exists():
        return _pneumoniamnist(int(match.group(1) or 28), medmnist_root)
    if path.suffix.lower() == ".csv":
        # Absolute, so that a table may name the files of its own folder by relative and by absolute paths.
        root = path.parent.absolute()
        radiographs = list(_read_table(path, root))
        check_classes(radiographs, source=str(path), remedy=f"a table has the columns {_COLUMNS}")
        has_val = any(radiograph.split == VAL for radiograph in radiographs)
        return Source(path.stem, root, radiographs, has_val, _patient_notes(radiographs))
    radiographs = scan(path)
    return Source(path.resolve().name, path, radiographs, notes=_patient_notes(radiographs))


def _patient_notes(radiographs: list[Radiograph]) -> tuple[str, ...]:
    unknown = sum(not radiograph.patient_known for radiograph in radiographs)
    if not unknown:
        return ()
    return (
        f"{unknown} of {len(radiographs)} radiographs carry no patient and count as patients of their own: if a "
        "patient has several, the metrics may be optimistic.",
    )


def _read_table(path: Path, root: Path) -> Iterator[Radiograph]:
    lines: dict[Path, tuple[int, Radiograph]] = {}
    for line, row in _rows(path):
        radiograph = _radiograph(row, root, f"{path}, line {line}")
        if radiograph.path in lines:
            before, other = lines[radiograph.path]
            if radiograph != other:
                raise DataError(
                    f"{row['path']} is on line {before} already, with another label, patient or split",
                    source=f"{path}, line {line}",
                    remedy="keep the correct line",
                )
            continue
        lines[radiograph.path] = line, radiograph
        yield radiograph


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and cells of each non-empty line; a missing cell is an empty string."""
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


def _radiograph(row: dict[str, str], root: Path, where: str) -> Radiograph:
    label, split = _LABELS.get(row["label"].lower()), SPLIT_BY_SPELLING.get(row.get("split", TRAIN).lower())
    if not row["path"]:
        raise DataError("no path", source=where, remedy="fill it in, or remove the line")
    if label is None:
        raise DataError(f"unknown label {row['label']!r}", source=where, remedy="Normal or 0, Pneumonia or 1")
    if split is None:
        raise DataError(f"unknown split {row['split']!r}", source=where, remedy="train, val or test")
    path = Path(os.path.normpath(root / row["path"]))
    patient = row.get("patient") or patient_of(path)
    metadata = {name: cell for name, cell in row.items() if name not in ("path", "label", "patient", "split")}
    return Radiograph(path, label, patient or file_name(path, root), split, bool(patient), metadata)


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
    radiographs = scan(folder)
    note = (
        "PneumoniaMNIST names no patients, and its train and val splits were drawn by image: radiographs of one "
        "patient may be in both, so the validation metrics may be optimistic."
    )
    return Source(f"PneumoniaMNIST {size}x{size}", folder, radiographs, has_val=True, notes=(note,))


def _extract(dataset: type, archive: Path, size: int, folder: Path) -> None:
    """Write the images as PNG files in the layout of the Kaggle set, all of them or none."""
    present = archive.exists()
    archive.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new_folder(folder, durable=False) as staging:
            for split in SPLIT_NAMES:
                part = dataset(split=split, root=str(archive.parent), size=size, download=not archive.exists())
                for label in LABELS:
                    (staging / split / label.upper()).mkdir(parents=True)
                pairs = zip(part.imgs, np.asarray(part.labels).ravel(), strict=True)
                for i, (pixels, index) in enumerate(track(pairs, f"unpacking {split}", total=len(part.imgs))):
                    Image.fromarray(pixels).save(staging / split / LABELS[int(index)].upper() / f"{i:05}.png")
    except RuntimeError as err:  # raised by medmnist if its download fails
        archive.unlink(missing_ok=True)
        raise DataError(
            "PneumoniaMNIST could not be downloaded", source=str(archive), remedy=f"put it there by hand from {_ZENODO}"
        ) from err
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        remedy = "remove it, and it is downloaded again" if present else "try again"
        raise DataError(f"is damaged or cannot be unpacked: {err}", source=str(archive), remedy=remedy) from err
