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
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from sklearn.metrics import roc_auc_score

from xray_client import LABELS, RESEARCH_USE, ImageError, Preprocessing, load_radiograph, read_radiograph
from xray_client.console import track

from .duplicates import close_pairs, radiograph_hash
from .names import file_name, shown
from .oddities import Look, Traits
from .records import TRAIN, VAL, LeftOut, Radiograph
from .sources import Source

# Duplicates may have been padded or squeezed since, so shapes and borders are ignored.
COMPARED_AS = Preprocessing(geometry="stretch")
SHORTCUT_AUROC = 0.6
_Z_99 = 2.58  # standard errors of a two-sided 99 % interval

_MODES = {
    "1": "black and white", "L": "grey, 8 bit", "LA": "grey, 8 bit, alpha", "I": "grey, 32 bit", "F": "grey, float",
    "P": "palette", "RGB": "colour", "RGBA": "colour, alpha", "CMYK": "colour, CMYK",
}  # fmt: skip
_PROPERTIES: dict[str, Callable[[AuditedFile], float]] = {
    "width": lambda r: r.width,
    "height": lambda r: r.height,
    "aspect ratio": lambda r: r.width / r.height,
    "pixels": lambda r: r.width * r.height,
    "file size": lambda r: r.bytes,
    "bytes per pixel": lambda r: r.bytes / (r.width * r.height),
    "stored in colour": lambda r: r.mode.startswith(("colour", "palette")),
}


@dataclass(frozen=True, slots=True)
class AuditedFile:
    """One file of the set and its properties.

    Attributes:
        file: Name relative to the source's root.
        label: One of LABELS.
        patient: Patient identifier.
        patient_known: False if the source names no patient.
        split: Split that the source assigns.
        effective_split: Split that training puts it into: "train" for a `val` that is pooled with training.
        format: Image format, e.g. "JPEG".
        mode: Colour mode and depth.
        width: Pixels.
        height: Pixels.
        bytes: File size.
        sha256: Hash of the file.
        error: Reason why it cannot be read; None if it can.
    """

    file: str
    label: str
    patient: str
    patient_known: bool
    split: str
    effective_split: str
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    bytes: int = 0
    sha256: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Files that show the same radiograph.

    Attributes:
        files: Names of the files.
        bits: Bits of 256 that differ between their perceptual hashes; None = byte-identical files.
        across_splits: The files are in several splits.
        across_classes: The files carry both labels.
        leakage: The files are in several effective splits.
    """

    files: list[str]
    bits: int | None
    across_splits: bool
    across_classes: bool
    leakage: bool


@dataclass(frozen=True, slots=True)
class PatientOverlap:
    """A patient with radiographs in several splits or classes.

    Attributes:
        patient: Patient identifier.
        places: Names of the splits or classes.
        files: Names of the files.
        leakage: The files are in several effective splits.
    """

    patient: str
    places: list[str]
    files: list[str]
    leakage: bool


@dataclass(frozen=True, slots=True)
class Shortcut:
    """A property of the files as a classifier of Pneumonia.

    Attributes:
        property: Name of the property.
        auroc: AUROC of Pneumonia; 0.5 = uninformative.
        median: Median of the property for each label.
        suspicious: AUROC further from 0.5 than `SHORTCUT_AUROC` and significant at 1 %.
    """

    property: str
    auroc: float
    median: dict[str, float]
    suspicious: bool


@dataclass(frozen=True, slots=True)
class Audit:
    """Result of an audit; `audit.json` holds this and the list of leakage.

    `inverted`, `mirrored` and `novel` are guesses, for people to look at; `novel` holds the novelty, largest first.
    """

    research_use: str
    source: str
    notes: list[str]
    seconds: float
    counts: dict[str, dict[str, dict[str, int]]]  # split -> label -> {"radiographs": n, "patients": n}
    formats: dict[str, dict[str, int]]  # label -> "JPEG, grey, 8 bit" -> n
    sizes: dict[str, dict[str, int]]  # label -> "224 x 224" -> n, the most frequent first
    without_patient: int
    left_out: list[LeftOut]
    unreadable: list[dict[str, str]]
    exact_duplicates: list[DuplicateGroup]
    near_duplicates: list[DuplicateGroup]
    patients_in_several_splits: list[PatientOverlap]
    patients_in_both_classes: list[PatientOverlap]
    shortcuts: list[Shortcut]
    inverted: list[str]
    mirrored: list[str]
    novel: list[tuple[str, float]]
    files: list[AuditedFile]

    @property
    def leakage(self) -> list[str]:
        """Cases of leakage, one sentence each."""
        duplicates = [
            " and ".join(map(shown, c.files))
            + (" are the same file" if c.bits is None else " are copies of one radiograph")
            for c in (*self.exact_duplicates, *self.near_duplicates)
            if c.leakage
        ]
        overlaps = [overlap for overlap in self.patients_in_several_splits if overlap.leakage]
        return duplicates + [f"patient {shown(o.patient)} is in {' and '.join(o.places)}" for o in overlaps]


def audit(source: Source, traits: Traits | None = None) -> Audit:
    """Read every file of `source` once and look for leakage, shortcuts, damage, and pictures unlike the rest.

    Args:
        source: Radiographs of a set.
        traits: Function that looks at prepared radiographs; None = no mirrored and no novel ones are looked for.
    """
    started = time.monotonic()
    files: list[AuditedFile] = []
    hashes: dict[str, npt.NDArray[Any]] = {}  # SHA-256 -> perceptual hash
    look = Look(traits)
    first: dict[str, AuditedFile] = {}  # SHA-256 -> the first of the files that have it
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inspected = pool.map(lambda radiograph: _inspect(radiograph, source), source.radiographs)
        for audited, pixels_hash, pixels in track(inspected, "reading", total=len(source.radiographs)):
            files.append(audited)
            if pixels_hash is not None:
                hashes.setdefault(audited.sha256, pixels_hash)
                first.setdefault(audited.sha256, audited)
                look.add(pixels)
    readable = [r for r in files if r.error is None]
    distinct = list(first.values())
    near = close_pairs(np.array(list(hashes.values()))) if hashes else ()
    return Audit(
        research_use=RESEARCH_USE,
        source=source.name,
        notes=list(source.notes),
        counts=_counts(files),
        formats=_tally(readable, lambda r: f"{r.format}, {r.mode}"),
        sizes=_tally(readable, lambda r: f"{r.width} x {r.height}"),
        without_patient=sum(not r.patient_known for r in files),
        left_out=list(source.left_out),
        unreadable=[{"file": r.file, "reason": r.error} for r in files if r.error is not None],
        exact_duplicates=[
            _duplicate_group(group, None) for group in _groups(readable, lambda r: r.sha256) if len(group) > 1
        ],
        near_duplicates=[_duplicate_group([distinct[i], distinct[j]], bits) for i, j, bits in near],
        patients_in_several_splits=_patient_overlaps(files, lambda r: r.split),
        patients_in_both_classes=_patient_overlaps(files, lambda r: r.label),
        shortcuts=shortcuts(readable),
        **look.found([r.file for r in readable]),
        files=files,
        seconds=round(time.monotonic() - started, 1),
    )


def _inspect(radiograph: Radiograph, source: Source) -> tuple[AuditedFile, npt.NDArray[Any] | None, Any]:
    """Return the file's properties and, if it can be read, its perceptual hash and its prepared pixels."""
    effective_split = TRAIN if radiograph.split == VAL and not source.has_val else radiograph.split
    audited = AuditedFile(
        file=file_name(radiograph.path, source.root),
        label=LABELS[radiograph.label],
        patient=radiograph.patient,
        patient_known=radiograph.patient_known,
        split=radiograph.split,
        effective_split=effective_split,
    )
    try:
        data = radiograph.path.read_bytes()
        audited = replace(audited, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        pixels = load_radiograph(data, COMPARED_AS)[0]
        file_format, mode, (width, height) = _header(data)
    except ImageError as err:
        return replace(audited, error=f"{err.message} ({err.remedy})" if err.remedy else err.message), None, None
    except OSError as err:
        return replace(audited, error=err.strerror or str(err)), None, None
    audited = replace(audited, format=file_format, mode=mode, width=width, height=height)
    return audited, radiograph_hash(pixels), pixels


def _header(data: bytes) -> tuple[str, str, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = "grey, 16 bit" if image.mode.startswith("I;16") else _MODES.get(image.mode, image.mode)
            return image.format or "unknown", mode, image.size
    except UnidentifiedImageError:  # DICOM, which only our own reader decodes
        return "DICOM", "grey", read_radiograph(data).size


def _counts(files: Sequence[AuditedFile]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for split in dict.fromkeys(r.split for r in files):
        for label in LABELS:
            of_label = [r for r in files if (r.split, r.label) == (split, label)]
            patients = len({r.patient for r in of_label})
            counts.setdefault(split, {})[label] = {"radiographs": len(of_label), "patients": patients}
    return counts


def _tally(files: Sequence[AuditedFile], key: Callable[[AuditedFile], str]) -> dict[str, dict[str, int]]:
    return {label: dict(Counter(key(r) for r in files if r.label == label).most_common()) for label in LABELS}


def _groups(files: Iterable[AuditedFile], key: Callable[[AuditedFile], str]) -> Iterable[list[AuditedFile]]:
    groups: dict[str, list[AuditedFile]] = defaultdict(list)
    for file in files:
        groups[key(file)].append(file)
    return groups.values()


def _duplicate_group(group: Sequence[AuditedFile], bits: int | None) -> DuplicateGroup:
    return DuplicateGroup(
        files=[r.file for r in group],
        bits=bits,
        across_splits=len({r.split for r in group}) > 1,
        across_classes=len({r.label for r in group}) > 1,
        leakage=len({r.effective_split for r in group}) > 1,
    )


def _patient_overlaps(files: Sequence[AuditedFile], place: Callable[[AuditedFile], str]) -> list[PatientOverlap]:
    """Find patients in more than one place. Different patients with the same number would look the same."""
    return [
        PatientOverlap(
            group[0].patient, places, [r.file for r in group], leakage=len({r.effective_split for r in group}) > 1
        )
        for group in _groups(files, lambda r: r.patient)
        if len(places := list(dict.fromkeys(place(r) for r in group))) > 1
    ]


def shortcuts(files: Sequence[AuditedFile]) -> list[Shortcut]:
    """Measure how well each property of the files alone predicts Pneumonia; empty if a class is missing."""
    labels = np.array([LABELS.index(r.label) for r in files])
    negatives, positives = int((labels == 0).sum()), int((labels == 1).sum())
    if not negatives or not positives:
        return []
    # Standard error of the AUROC under the null hypothesis (Mann and Whitney 1947).
    error = math.sqrt((negatives + positives + 1) / (12 * negatives * positives))
    found = []
    for name, value_of in _PROPERTIES.items():
        values = np.array([value_of(r) for r in files], dtype=float)
        auroc = float(roc_auc_score(labels, values))
        suspicious = abs(auroc - 0.5) > max(SHORTCUT_AUROC - 0.5, _Z_99 * error)
        median = {label: float(np.median(values[labels == i])) for i, label in enumerate(LABELS)}
        found.append(Shortcut(name, round(auroc, 4), median, suspicious))
    return found
