"""Sources of radiographs. The option `--data` accepts

    chest_xray/               a folder in the layout of the Kaggle set, see `finetune.data.records`
    radiographs.csv           a table, one radiograph per line
    pneumoniamnist:224        PneumoniaMNIST of 28, 64, 128 or 224 pixels, downloaded by the `medmnist` package

A table has the columns path and label and, if known, patient and split; further columns are kept as metadata:

    path,label,patient,split
    images/a.png,Normal,P001,train
    images/b.dcm,Pneumonia,P002,test

Paths are relative to the table's folder, or absolute. A label is Normal or 0, Pneumonia or 1, or a name that `--labels`
maps. A split is train, val or test. A blank cell means "not known": a line without path or label is left out, one
without a split counts as train, and one without a patient as for a folder, see `finetune.data.folders`. A table with a
`val` split keeps its splits; otherwise a validation split is drawn by patient. Names of files
may be in no encoding.
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

from .folders import scan
from .labels import LabelNames
from .names import ENCODING_ERRORS, file_name, shown
from .patients import dicom_patient, patient_of
from .records import SPLIT_BY_SPELLING, SPLIT_NAMES, TRAIN, VAL, LeftOut, Radiograph, check_classes

MEDMNIST_SIZES = (28, 64, 128, 224)

_COLUMNS = "path and label, and if known patient and split"
_KNOWN_LABELS = "Normal or 0, Pneumonia or 1"
_NUMBERS = {str(label): label for label in range(len(LABELS))}
_ZENODO = "https://zenodo.org/records/10519652"
_MEDMNIST = re.compile(r"pneumoniamnist(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Source:
    """Radiographs of one folder, table or public set.

    Attributes:
        name: Name for reports.
        root: Folder that file names are relative to; see `finetune.data.names.file_name`.
        radiographs: The radiographs, in a fixed order.
        has_val: Keep the `val` split; False pools it with training and draws a validation split.
        notes: Caveats for readers of the metrics, in sentences.
        left_out: Files, folders and lines that are not taken.
    """

    name: str
    root: Path
    radiographs: list[Radiograph]
    has_val: bool = False
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def find_radiographs(
    source: Path | str,
    *,
    labels: LabelNames | None = None,
    medmnist_root: Path | None = None,
    to_train_on: bool = True,
) -> Source:
    """Find the radiographs of a folder, a table or PneumoniaMNIST.

    Args:
        source: Folder, table or name of a set, as described in the module's docstring.
        labels: Classes of the names of folders, or of the labels in a table; None = Normal and Pneumonia.
        to_train_on: Refuse a source that has nothing of one class outside of its test split.
        medmnist_root: Folder that holds PneumoniaMNIST or receives its download; None = the package's, `~/.medmnist`.

    Raises:
        DataError: The source is none of these, has another layout, or a line of the table is invalid.
    """
    path, labels = Path(source), labels or LabelNames()
    if (match := _MEDMNIST.fullmatch(str(source).lower())) and not path.exists():
        return _pneumoniamnist(int(match.group(1) or 28), medmnist_root)
    if path.suffix.lower() == ".csv":
        return _table(path, labels, to_train_on)
    found = scan(path, labels, to_train_on=to_train_on)
    notes = (*found.notes, *_patient_notes(found.radiographs))
    return Source(shown(path.resolve().name), path, found.radiographs, found.has_val, notes, tuple(found.left_out))


def _table(path: Path, labels: LabelNames, to_train_on: bool) -> Source:
    # Absolute, so that a table may name the files of its own folder by relative and by absolute paths.
    root = path.parent.absolute()
    left_out: list[LeftOut] = []
    radiographs = list(_read_table(path, root, labels, left_out))
    labels.check_used(str(path))
    if to_train_on or not radiographs:
        check_classes(radiographs, source=str(path), remedy=f"a table has the columns {_COLUMNS}")
    has_val = any(radiograph.split == VAL for radiograph in radiographs)
    return Source(shown(path.stem), root, radiographs, has_val, _patient_notes(radiographs), tuple(left_out))


def _patient_notes(radiographs: list[Radiograph]) -> tuple[str, ...]:
    unknown = sum(not radiograph.patient_known for radiograph in radiographs)
    if not unknown:
        return ()
    return (
        f"{unknown} of {len(radiographs)} radiographs carry no patient and count as patients of their own: if a "
        "patient has several, the metrics may be optimistic.",
    )


def _read_table(path: Path, root: Path, labels: LabelNames, left_out: list[LeftOut]) -> Iterator[Radiograph]:
    lines: dict[Path, tuple[int, Radiograph]] = {}
    for line, row in _rows(path):
        where = f"{path}, line {line}"
        if reason := _why_not(row, labels):
            left_out.append(LeftOut(row["path"].strip() or f"line {line}", reason))
            continue
        radiograph = _radiograph(row, root, labels, where)
        if radiograph.path in lines:
            before, other = lines[radiograph.path]
            if radiograph != other:
                raise DataError(
                    f"{row['path']} is on line {before} already, with another label, patient or split",
                    source=where,
                    remedy="keep the correct line",
                )
            continue
        lines[radiograph.path] = line, radiograph
        yield radiograph


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number and cells of each non-empty line; a missing cell is an empty string."""
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=ENCODING_ERRORS) as file:
            reader = csv.DictReader(file, restval="")
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            for column in ("path", "label"):
                if column not in reader.fieldnames:
                    raise DataError(
                        f"no column {column!r}", source=str(path), remedy=f"a table is a CSV, UTF-8, of {_COLUMNS}"
                    )
            for row in reader:
                cells = {name: cell for name, cell in row.items() if isinstance(name, str)}
                # The name of a file may begin or end with a space.
                yield reader.line_num, {n: cell if n == "path" else cell.strip() for n, cell in cells.items()}
    except FileNotFoundError as err:
        raise DataError("no such file", source=str(path), remedy="name the table with --data") from err
    except (OSError, csv.Error) as err:
        raise DataError(f"cannot be read as a table: {err}", source=str(path), remedy="save it as CSV, UTF-8") from err


def _why_not(row: dict[str, str], labels: LabelNames) -> str | None:
    """Return the reason why a line is left out."""
    if not row["path"].strip():
        return "no path"
    return labels.why_not(row["label"]) if row["label"] else "no label"


def _radiograph(row: dict[str, str], root: Path, labels: LabelNames, where: str) -> Radiograph:
    label = _NUMBERS.get(row["label"]) if not labels.is_given(row["label"]) else None
    label = labels.of(row["label"]) if label is None else label
    split = SPLIT_BY_SPELLING.get((row.get("split") or TRAIN).lower())
    if label is None:
        remedy = f"{_KNOWN_LABELS}; --labels maps further ones"
        raise DataError(f"unknown label {row['label']!r}", source=where, remedy=remedy)
    if split is None:
        raise DataError(f"unknown split {row['split']!r}", source=where, remedy="train, val or test")
    path = Path(os.path.normpath(root / row["path"]))
    if not path.exists():
        path = Path(os.path.normpath(root / row["path"].strip()))
    patient = row.get("patient") or row.get("patient_id") or dicom_patient(path) or patient_of(path)
    # A blank cell means that nothing is known.
    metadata = {
        name: cell
        for name, cell in row.items()
        if cell and name not in ("path", "label", "patient", "patient_id", "split")
    }
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
    radiographs = scan(folder).radiographs
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
