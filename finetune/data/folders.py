"""Radiographs of a folder: every file below it is taken, or left out with the reason.

    DIR/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg      the layout of the Kaggle set "Chest X-Ray Images (Pneumonia)"
    DIR/{NORMAL,PNEUMONIA}/*.jpeg                       also works: everything counts as training data
    DIR/{NORMAL,PNEUMONIA}/{train,val,test}/*.jpeg      also works

Names of folders are read in any case; `valid` and `validation` are `val`. Folders in a class's folder belong to the
class, except `masks` and `overlays`. Folders of other names are left out, unless the option `--labels` names their
class. Links to folders are followed, each folder once.

`train` and `val` are pooled, and a validation split is drawn by patient, where `val` has at most `FEW_TO_VALIDATE`
radiographs or lacks a class: the official one has 16.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune.errors import DataError
from xray_client import LABELS
from xray_client.image_files import why_left_out

from .labels import LabelNames
from .names import file_name
from .patients import dicom_patient, patient_of
from .records import SPLIT_BY_SPELLING, SPLIT_NAMES, TEST, TRAIN, VAL, LeftOut, Radiograph, check_classes, class_counts

FEW_TO_VALIDATE = 100

_LAYOUT = "a folder holds train/NORMAL and train/PNEUMONIA (val and test likewise), or NORMAL and PNEUMONIA"
# Beside the images in public sets, and not radiographs.
_NO_RADIOGRAPHS = frozenset({"mask", "masks", "overlay", "overlays"})
_UNKNOWN_CLASS = "folder of no known class, which --labels can name"


@dataclass(frozen=True, slots=True)
class FolderScan:
    """Content of a folder.

    Attributes:
        radiographs: The radiographs, in a fixed order.
        left_out: Every other file and folder; a folder stands for all that is in it.
        has_val: The folder's own `val` is large enough to be kept.
        notes: What a reader of the metrics should know, in sentences.
    """

    radiographs: list[Radiograph]
    left_out: list[LeftOut]
    has_val: bool
    notes: tuple[str, ...]


def scan(root: Path, labels: LabelNames | None = None, *, to_train_on: bool = True) -> FolderScan:
    """Find every radiograph below `root`, in a fixed order, and say of everything else why it is left out.

    A DICOM file's patient is its PatientID, hashed; another file's is in its name, as in the Kaggle set. A file that
    names no patient counts as a patient of its own.

    Args:
        root: The folder.
        labels: Classes of the folders' names; None = NORMAL and PNEUMONIA.
        to_train_on: Refuse a folder that has nothing of one class outside of its test split.

    Raises:
        DataError: `root` is missing or has not the layout, a class to train on is empty, or `labels` names a folder
            that is not there.
    """
    if not root.is_dir():
        raise DataError("no such folder", source=str(root), remedy="name the folder with --data")
    walk = _Walk(root, labels or LabelNames())
    walk.run()
    if walk.denied and not walk.radiographs:
        raise DataError(walk.denied, source=str(root), remedy="give this user the right to read it")
    walk.labels.check_used(str(root))
    problem = _LAYOUT
    if unknown := [entry.file for entry in walk.left_out if entry.reason == _UNKNOWN_CLASS]:
        problem += f"; left out as of no known class: {', '.join(unknown[:5])}"
    if to_train_on or not walk.radiographs:
        check_classes(walk.radiographs, source=str(root), remedy=problem)
    has_val, notes = _own_val(walk.radiographs)
    return FolderScan(walk.radiographs, walk.left_out, has_val, notes)


def _own_val(radiographs: Sequence[Radiograph]) -> tuple[bool, tuple[str, ...]]:
    """Tell if the folder's own val is kept, and say what becomes of it."""
    counts = class_counts(radiograph.label for radiograph in radiographs if radiograph.split == VAL)
    trained = class_counts(radiograph.label for radiograph in radiographs if radiograph.split == TRAIN)
    total = sum(counts)
    if not total:
        return False, ()
    if total > FEW_TO_VALIDATE and all(counts) and all(trained):
        return True, ()
    lacking = [label for label, count in zip(LABELS, counts, strict=True) if not count]
    why = f"has no {lacking[0]}" if total > FEW_TO_VALIDATE and lacking else "is too small to validate on"
    if total > FEW_TO_VALIDATE and not lacking:
        why = "has what train lacks"
    return False, (
        f"The val folder ({total} radiographs) {why}: it is pooled with train, and a validation split is drawn.",
    )


@dataclass
class _Walk:
    root: Path
    labels: LabelNames
    radiographs: list[Radiograph] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    denied: str = ""
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _by_split: bool = False  # the folders of the splits hold those of the classes, not the other way round

    def run(self) -> None:
        base, beside = self.root, []
        entries = list(self._entries(base))
        splits = _split_folders(entries)
        unpacked = next((path for path in entries if path.name == "chest_xray" and path.is_dir()), None)
        if unpacked and not any(split != TEST for split, _ in splits):  # as the Kaggle archive unpacks
            beside = [path for path in entries if path != unpacked]
            entries = list(self._entries(unpacked))
            splits = _split_folders(entries)
        self._by_split = bool(splits)
        for path in beside:
            self._leave(path, "beside chest_xray")
        rest = [path for path in entries if path not in {folder for _, folder in splits}]
        for name in SPLIT_NAMES:
            for split, folder in splits:
                if split == name:
                    self._classes(self._entries(folder), split)
        if all(radiograph.split == TEST for radiograph in self.radiographs):
            self._classes(rest, TRAIN)
        else:
            for path in rest:
                self._leave(path, "beside the folders of the splits")

    def _entries(self, folder: Path) -> Iterator[Path]:
        """Yield what is in a folder, in a fixed order; nothing if it was read before, under whatever name."""
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in self._seen:
                self._leave(folder, "a folder that is read already, by another name")
                return
            self._seen.add((status.st_dev, status.st_ino))
            paths = sorted(folder.iterdir(), key=os.fsencode)
        except OSError as err:
            self.denied = f"cannot be listed: {err.strerror or err}"
            self._leave(folder, self.denied)
            return
        yield from paths

    def _classes(self, entries: Iterator[Path] | Sequence[Path], split: str) -> None:
        found = list(entries)
        # By class, so that the order is that of the labels whatever the folders are called.
        folders = [path for path in found if _is_folder(path) and not path.name.startswith(".")]
        labels = {path: self.labels.of(path.name) for path in folders}
        for label in range(len(LABELS)):
            for path in folders:
                if labels[path] == label:
                    self._class(path, label, split)
        for path in found:
            if path not in labels:
                self._leave(path, why_left_out(path) or "beside the folders of the classes")
            elif labels[path] is None:
                self._leave(path, self.labels.why_not(path.name) or _UNKNOWN_CLASS)

    def _class(self, folder: Path, label: int, split: str) -> None:
        inner: list[Path] = []
        for path in self._entries(folder):
            if _is_folder(path):
                inner.append(path)
            elif reason := why_left_out(path) or _not_a_file(path):
                self._leave(path, reason)
            else:
                self._take(path, label, split)
        for path in inner:
            own, own_split = self.labels.of(path.name), SPLIT_BY_SPELLING.get(path.name.lower())
            if path.name.startswith("."):
                self._leave(path, "hidden")
            elif reason := self.labels.why_not(path.name):
                self._leave(path, reason)
            elif path.name.lower() in _NO_RADIOGRAPHS and own is None:
                self._leave(path, f"folder of {path.name.lower()}")
            elif own not in (None, label) and not self.labels.is_given(path.name):
                self._leave(path, f"folder of the class {LABELS[own or 0]} inside another class")
            elif own_split and self._by_split:
                self._leave(path, "folder of a split inside a class")
            else:
                self._class(path, label if own is None else own, own_split or split)

    def _take(self, path: Path, label: int, split: str) -> None:
        # A known patient's identity leaves out the split's folder: test patients are looked for in training.
        patient = dicom_patient(path) or patient_of(path)
        own = patient or file_name(path, self.root)
        self.radiographs.append(Radiograph(path, label, own, split, patient_known=patient is not None))

    def _leave(self, path: Path, reason: str) -> None:
        if path.name.startswith("."):
            reason = "hidden"
        name, folder = file_name(path, self.root), _is_folder(path)
        self.left_out.append(LeftOut(f"{name}/" if folder else name, reason, _files_in(path) if folder else 1))


def _split_folders(entries: Sequence[Path]) -> list[tuple[str, Path]]:
    return [
        (split, path)
        for path in entries
        if (split := SPLIT_BY_SPELLING.get(path.name.lower())) is not None and _is_folder(path)
    ]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _files_in(folder: Path) -> int:
    return 0 if folder.is_symlink() else sum(len(files) for _, _, files in os.walk(folder))


def _not_a_file(path: Path) -> str | None:
    """Return the reason why a path with an image's name is no file; a file without permission is left to the reader."""
    try:
        return None if path.is_file() else "link to nothing" if path.is_symlink() else "not a file"
    except OSError:
        return None
