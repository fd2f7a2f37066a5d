"""From a source of radiographs to prepared, split material for training; says what it found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from finetune.settings import DataSettings
from xray_client import LABELS, Preprocessing
from xray_client.console import console

from .cache import Cache, already_square, build_cache
from .duplicates import near_duplicates
from .records import Splits, class_counts, merge_duplicates, split_by_patient
from .sampling import CachedRadiographs
from .sources import Source, find_radiographs
from .splits import load_splits, split_as_given

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Material:
    """Prepared radiographs and their split.

    Attributes:
        source: Where they come from.
        preprocessing: How they were prepared.
        cache: The prepared images.
        splits: Indices of each part.
        labels: int (n,).
        patients: str (n,).
        how_split: In words.
        near_duplicates: Pairs of radiographs that are the same but not the same file; each pair counts as one patient.
    """

    source: Source
    preprocessing: Preprocessing
    cache: Cache
    splits: Splits
    how_split: str
    near_duplicates: int
    labels: np.ndarray = field(init=False)
    patients: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.array([record.label for record in self.cache.records]))
        object.__setattr__(self, "patients", np.array([record.patient for record in self.cache.records]))

    def part(self, name: str) -> np.ndarray:
        """Indices of "train", "val" or "test"."""
        return getattr(self.splits, name)

    def rows(self, name: str) -> np.ndarray:
        """Rows of the cache of a part."""
        return self.cache.rows[self.part(name)]

    def dataset(self, name: str, *, augmentation: float = 0.0, degradation: float = 0.0) -> CachedRadiographs:
        """The radiographs of a part, to train or validate on."""
        part = self.part(name)
        return CachedRadiographs(
            self.cache.images,
            self.cache.rows[part],
            self.labels[part],
            augmentation=augmentation,
            degradation=degradation,
        )


def gather(settings: DataSettings) -> Material:
    """Find, decode and split the radiographs; says what it found.

    Raises:
        DataError: See `find_radiographs`, `build_cache`, `split_by_patient` and `load_splits`.
    """
    source = find_radiographs(settings.source)
    geometry = settings.geometry
    if geometry == "auto":
        geometry = "stretch" if already_square(source.records, Preprocessing().size) else "pad"
        reason = "the images were stretched to squares already" if geometry == "stretch" else "as MedCLIP does"
        console.print(f"geometry: {geometry}, {reason}")
    preprocessing = Preprocessing(geometry=geometry)
    cache = build_cache(source.records, preprocessing, source.root, settings.cache)
    for name, reason in cache.unreadable:
        console.print(f"unreadable, left out: {name}: {reason}", style="yellow")
    near = near_duplicates(cache.images, cache.rows)
    cache = replace(cache, records=merge_duplicates(cache.records, cache.digests, near))
    if settings.splits is not None:
        splits, how = load_splits(settings.splits, cache.records, source.root), "as an earlier run's splits.csv says"
    elif source.own_validation:
        splits, how = split_as_given(cache.records), "as the data came"
    else:
        splits = split_by_patient(cache.records, val_fraction=settings.val_fraction, seed=settings.seed)
        how = f"by patient, seed {settings.seed}, {settings.val_fraction:.0%} of patients to validation"
    material = Material(source, preprocessing, cache, splits, how, len(near))
    for note in source.notes:
        console.print(note, style="yellow")
    if splits.leaked_patients:
        why = "left out, as the file says" if settings.splits else "in two parts; taken out of the one that trains"
        console.print(f"{len(splits.leaked_patients)} patients are {why}", style="yellow")
    for name in PARTS:
        part = material.part(name)
        if len(part):
            counts = ", ".join(
                f"{n} {label}" for n, label in zip(class_counts(material.labels[part]), LABELS, strict=True)
            )
            console.print(f"{name}: {len(part)} radiographs of {len(set(material.patients[part]))} patients ({counts})")
    return material
