"""Audit of a set of radiographs: leakage, shortcuts and damage; see `finetune.audit`."""

from __future__ import annotations

import hashlib
import io
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.metrics import roc_auc_score

from xray_client import LABELS, RESEARCH_USE, ImageError, Preprocessing, load_radiograph, read_radiograph
from xray_client.console import track

from .duplicates import close_pairs, radiograph_hash
from .records import Record, file_name
from .sources import Source

# Compared without their borders and shapes: a copy may have been padded or squeezed since.
COMPARED_AS = Preprocessing(geometry="stretch")
SHORTCUT_AUROC = 0.6
_Z_99 = 2.58  # standard errors that chance stays within in 99 of 100 sets

_MODES = {
    "1": "black and white", "L": "grey, 8 bit", "LA": "grey, 8 bit, alpha", "I": "grey, 32 bit", "F": "grey, float",
    "P": "palette", "RGB": "colour", "RGBA": "colour, alpha", "CMYK": "colour, CMYK",
}  # fmt: skip
_PROPERTIES: dict[str, Callable[[Radiograph], float]] = {
    "width": lambda r: r.width,
    "height": lambda r: r.height,
    "aspect ratio": lambda r: r.width / r.height,
    "pixels": lambda r: r.width * r.height,
    "file size": lambda r: r.bytes,
    "bytes per pixel": lambda r: r.bytes / (r.width * r.height),
    "stored in colour": lambda r: r.mode.startswith(("colour", "palette")),
}


@dataclass(frozen=True, slots=True)
class Radiograph:
    """One file of the set, as it was found."""

    file: str
    label: str
    patient: str
    patient_known: bool
    folder: str  # "train", "val" or "test"
    side: str  # as `folder`, but "train" for a `val` that training pools with it
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Copies:
    """Files that show the same radiograph; `bits` of 256 differ in their hashes, None = byte-identical."""

    files: list[str]
    bits: int | None
    across_parts: bool
    across_classes: bool
    leakage: bool


@dataclass(frozen=True, slots=True)
class Torn:
    """A patient with radiographs in several parts or classes."""

    patient: str
    places: list[str]
    files: list[str]
    leakage: bool


@dataclass(frozen=True, slots=True)
class Shortcut:
    """How well one property of the files tells the classes apart: AUROC of Pneumonia, 0.5 = not at all.

    `suspicious` where it is further from 0.5 than `SHORTCUT_AUROC` is, and than chance would put it in 99 of 100 sets.
    """

    property: str
    auroc: float
    median: dict[str, float]
    suspicious: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything that was found; `audit.json` is this and the list of leakage."""

    research_use: str
    source: str
    notes: list[str]
    seconds: float
    counts: dict[str, dict[str, dict[str, int]]]  # folder -> label -> {"radiographs": n, "patients": n}
    formats: dict[str, dict[str, int]]  # label -> "JPEG, grey, 8 bit" -> n
    sizes: dict[str, dict[str, int]]  # label -> "224 x 224" -> n, the most frequent first
    without_patient: int
    unreadable: list[dict[str, str]]
    exact_copies: list[Copies]
    near_copies: list[Copies]
    patients_in_several_parts: list[Torn]
    patients_in_both_classes: list[Torn]
    shortcuts: list[Shortcut]
    radiographs: list[Radiograph]

    @property
    def leakage(self) -> list[str]:
        """Each case of leakage, in a sentence."""
        said = [
            f"{' and '.join(c.files)} are {'the same file' if c.bits is None else 'copies of one radiograph'}"
            for c in (*self.exact_copies, *self.near_copies)
            if c.leakage
        ]
        torn = [t for t in self.patients_in_several_parts if t.leakage]
        return said + [f"patient {t.patient} is in {' and '.join(t.places)}" for t in torn]


def audit(source: Source) -> Audit:
    """Read every file of `source` once and look for what the text of this module describes."""
    started = time.monotonic()
    radiographs: list[Radiograph] = []
    hashes: dict[str, np.ndarray] = {}  # SHA-256 -> perceptual hash
    first: dict[str, Radiograph] = {}  # SHA-256 -> the first of the files that have it
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        looked_at = pool.map(lambda record: _look_at(record, source), source.records)
        for radiograph, pixels_hash in track(looked_at, "reading", total=len(source.records)):
            radiographs.append(radiograph)
            if pixels_hash is not None:
                hashes.setdefault(radiograph.sha256, pixels_hash)
                first.setdefault(radiograph.sha256, radiograph)
    readable = [r for r in radiographs if r.error is None]
    distinct = list(first.values())
    near = close_pairs(np.array(list(hashes.values()))) if hashes else ()
    return Audit(
        research_use=RESEARCH_USE,
        source=source.name,
        notes=list(source.notes),
        counts=_counts(radiographs),
        formats=_tally(readable, lambda r: f"{r.format}, {r.mode}"),
        sizes=_tally(readable, lambda r: f"{r.width} x {r.height}"),
        without_patient=sum(not r.patient_known for r in radiographs),
        unreadable=[{"file": r.file, "reason": r.error} for r in radiographs if r.error is not None],
        exact_copies=[_copies(group, None) for group in _groups(readable, lambda r: r.sha256) if len(group) > 1],
        near_copies=[_copies([distinct[i], distinct[j]], bits) for i, j, bits in near],
        patients_in_several_parts=_torn(radiographs, lambda r: r.folder),
        patients_in_both_classes=_torn(radiographs, lambda r: r.label),
        shortcuts=shortcuts(readable),
        radiographs=radiographs,
        seconds=round(time.monotonic() - started, 1),
    )


def _look_at(record: Record, source: Source) -> tuple[Radiograph, np.ndarray | None]:
    """The file's facts, and its perceptual hash where it can be read."""
    side = "train" if record.folder == "val" and not source.own_validation else record.folder
    radiograph = Radiograph(
        file=file_name(record.path, source.root),
        label=LABELS[record.label],
        patient=record.patient,
        patient_known=record.patient_known,
        folder=record.folder,
        side=side,
    )
    try:
        data = record.path.read_bytes()
        radiograph = replace(radiograph, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        pixels = load_radiograph(data, COMPARED_AS)[0]
        file_format, mode, (width, height) = _header(data)
    except ImageError as err:
        return replace(radiograph, error=f"{err.message} ({err.remedy})" if err.remedy else err.message), None
    except OSError as err:
        return replace(radiograph, error=err.strerror or str(err)), None
    radiograph = replace(radiograph, format=file_format, mode=mode, width=width, height=height)
    return radiograph, radiograph_hash(pixels)


def _header(data: bytes) -> tuple[str, str, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = "grey, 16 bit" if image.mode.startswith("I;16") else _MODES.get(image.mode, image.mode)
            return image.format or "unknown", mode, image.size
    except UnidentifiedImageError:  # DICOM, whose pixels only the reader understands
        return "DICOM", "grey", read_radiograph(data).size


def _counts(radiographs: Sequence[Radiograph]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for folder in dict.fromkeys(r.folder for r in radiographs):
        for label in LABELS:
            of_label = [r for r in radiographs if (r.folder, r.label) == (folder, label)]
            patients = len({r.patient for r in of_label})
            counts.setdefault(folder, {})[label] = {"radiographs": len(of_label), "patients": patients}
    return counts


def _tally(radiographs: Sequence[Radiograph], what: Callable[[Radiograph], str]) -> dict[str, dict[str, int]]:
    return {label: dict(Counter(what(r) for r in radiographs if r.label == label).most_common()) for label in LABELS}


def _groups(radiographs: Iterable[Radiograph], key: Callable[[Radiograph], str]) -> Iterable[list[Radiograph]]:
    groups: dict[str, list[Radiograph]] = defaultdict(list)
    for radiograph in radiographs:
        groups[key(radiograph)].append(radiograph)
    return groups.values()


def _copies(group: Sequence[Radiograph], bits: int | None) -> Copies:
    return Copies(
        files=[r.file for r in group],
        bits=bits,
        across_parts=len({r.folder for r in group}) > 1,
        across_classes=len({r.label for r in group}) > 1,
        leakage=len({r.side for r in group}) > 1,
    )


def _torn(radiographs: Sequence[Radiograph], place: Callable[[Radiograph], str]) -> list[Torn]:
    """Patients in more than one place. Different patients of a numbering that starts anew would look the same."""
    return [
        Torn(group[0].patient, places, [r.file for r in group], leakage=len({r.side for r in group}) > 1)
        for group in _groups(radiographs, lambda r: r.patient)
        if len(places := list(dict.fromkeys(place(r) for r in group))) > 1
    ]


def shortcuts(radiographs: Sequence[Radiograph]) -> list[Shortcut]:
    """How well each property of the files alone tells the classes apart; empty where a class is missing."""
    labels = np.array([LABELS.index(r.label) for r in radiographs])
    negatives, positives = int((labels == 0).sum()), int((labels == 1).sum())
    if not negatives or not positives:
        return []
    # Of an AUROC where there is nothing to find (Mann and Whitney 1947).
    error = math.sqrt((negatives + positives + 1) / (12 * negatives * positives))
    found = []
    for name, of in _PROPERTIES.items():
        values = np.array([of(r) for r in radiographs], dtype=float)
        auroc = float(roc_auc_score(labels, values))
        suspicious = abs(auroc - 0.5) > max(SHORTCUT_AUROC - 0.5, _Z_99 * error)
        median = {label: float(np.median(values[labels == i])) for i, label in enumerate(LABELS)}
        found.append(Shortcut(name, round(auroc, 4), median, suspicious))
    return found
