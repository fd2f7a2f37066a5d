"""Data module: from a source of radiographs to prepared images with their splits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.settings import DataSettings
from xray_client import LABELS, Preprocessing
from xray_client.console import console

from .cache import Cache, already_square, build_cache
from .conflicts import without_conflicts
from .duplicates import near_duplicates
from .left_out import left_out_lines
from .names import shown
from .records import SPLIT_NAMES, IndexArray, Splits, class_counts, merge_duplicates, split_by_patient
from .sampling import CachedRadiographs
from .sources import Source, find_radiographs
from .splits import load_splits, split_as_given


@dataclass(frozen=True)
class DataModule:
    """Prepared radiographs and their splits.

    Attributes:
        source: Source of the radiographs.
        preprocessing: Preprocessing that was applied.
        cache: Prepared images.
        splits: Indices of each split.
        split_method: Description of how the splits were made.
        near_duplicates: Number of pairs of files that show the same radiograph; each pair counts as one patient.
        labels: int (n,), index into LABELS.
        patients: str (n,).
    """

    source: Source
    preprocessing: Preprocessing
    cache: Cache
    splits: Splits
    split_method: str
    near_duplicates: int
    labels: IndexArray = field(init=False)
    patients: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.array([radiograph.label for radiograph in self.cache.radiographs]))
        object.__setattr__(self, "patients", np.array([radiograph.patient for radiograph in self.cache.radiographs]))

    def indices(self, split: str) -> IndexArray:
        """Return the indices of a split's radiographs."""
        return self.splits.indices(split)

    def rows(self, split: str) -> IndexArray:
        """Return the cache rows of a split's radiographs."""
        return self.cache.rows[self.indices(split)]

    def dataset(self, split: str, *, augmentation: float = 0.0, degradation: float = 0.0) -> CachedRadiographs:
        """Return a split as a dataset to train or validate on."""
        return CachedRadiographs(
            self.cache.images,
            self.rows(split),
            self.labels[self.indices(split)],
            augmentation=augmentation,
            degradation=degradation,
        )


def prepare_data(settings: DataSettings, cache_folder: Path) -> DataModule:
    """Find, decode and split the radiographs, and report the result on the console.

    Args:
        settings: Radiographs and their split.
        cache_folder: Folder of decoded images.

    Raises:
        DataError: See `find_radiographs`, `build_cache`, `split_by_patient` and `load_splits`.
    """
    source = find_radiographs(settings.data, labels=settings.label_names())
    for line in left_out_lines(source.left_out):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    geometry = settings.geometry
    if geometry == "auto":
        geometry = "stretch" if already_square(source.radiographs, Preprocessing().size) else "pad"
        reason = "the images were stretched to squares already" if geometry == "stretch" else "as MedCLIP does"
        console.print(f"geometry: {geometry}, {reason}")
    preprocessing = Preprocessing(geometry=geometry)
    cache = build_cache(source.radiographs, preprocessing, source.root, cache_folder)
    for name, reason in cache.unreadable:
        console.print(f"unreadable, left out: {shown(name)}: {reason}", style="yellow", markup=False, soft_wrap=True)
    cache, dropped = without_conflicts(cache, source.root, drop=settings.conflicts == "drop")
    source = replace(source, left_out=(*source.left_out, *dropped))
    for line in left_out_lines(dropped):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    near = near_duplicates(cache.images, cache.rows)
    cache = replace(cache, radiographs=merge_duplicates(cache.radiographs, cache.digests, near))
    if settings.splits is not None:
        splits, method = (
            load_splits(settings.splits, cache.radiographs, source.root),
            "as in an earlier run's splits.csv",
        )
    elif source.has_val:
        splits, method = split_as_given(cache.radiographs), "as the data came"
    else:
        splits = split_by_patient(cache.radiographs, val_fraction=settings.val_fraction, seed=settings.seed)
        method = f"by patient, seed {settings.seed}, {settings.val_fraction:.0%} of patients to validation"
    datamodule = DataModule(source, preprocessing, cache, splits, method, len(near))
    _report(datamodule, splits_given=settings.splits is not None)
    return datamodule


def _report(datamodule: DataModule, *, splits_given: bool) -> None:
    for note in datamodule.source.notes:
        console.print(note, style="yellow", markup=False)
    if leaked := datamodule.splits.leaked_patients:
        why = "left out, as in the file" if splits_given else "in two splits; removed from the one that trains"
        console.print(f"{len(leaked)} patients are {why}", style="yellow")
    for name in SPLIT_NAMES:
        indices = datamodule.indices(name)
        if len(indices):
            labels, patients = datamodule.labels[indices], set(datamodule.patients[indices])
            counts = ", ".join(f"{n} {label}" for n, label in zip(class_counts(labels), LABELS, strict=True))
            console.print(f"{name}: {len(indices)} radiographs of {len(patients)} patients ({counts})")
