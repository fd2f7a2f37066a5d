"""The calibration set: the radiographs that engines are compared and quantized on. Few, real, chosen by seed.

They are prepared by the client's own reader and preprocessing, and are not copied into a build: the build record says
where they came from, and keeps the hash by which the same set is recognized. A published version keeps two of them at
most, with the answers that a server must give to them.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_build.errors import BuildError
from xray_client import ImageError, Preprocessing, load_radiograph
from xray_client.image_files import is_image_file

COUNT = 200


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Prepared radiographs.

    Attributes:
        images: uint8 (n, 1, s, s).
        names: Names of the images, for an error.
        source: Folder, table or file that they came from.
        seed: Seed of the choice; None = all were taken.
        real: True for radiographs, False for phantoms, which can show that a graph computes the same, but not the cost
            of lower precision.
    """

    images: npt.NDArray[np.uint8]
    names: tuple[str, ...]
    source: str
    seed: int | None = None
    real: bool = True

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[1] != 1 or not len(self.images):
            raise BuildError(
                f"a calibration set of {self.images.dtype} {self.images.shape} is not uint8 (n, 1, size, size)",
                source=self.source,
            )

    @property
    def sha256(self) -> str:
        """Hash of shape and pixels."""
        digest = hashlib.sha256(repr(self.images.shape).encode())
        digest.update(np.ascontiguousarray(self.images).tobytes())
        return digest.hexdigest()

    def about(self) -> dict[str, Any]:
        """Describe the set for the build record."""
        return {
            "source": self.source,
            "images": len(self.images),
            "seed": self.seed,
            "radiographs": self.real,
            "sha256": self.sha256,
        }

    def need_real(self, step: str) -> None:
        """Refuse phantoms for a step whose cost only radiographs show.

        Raises:
            BuildError: The images are phantoms.
        """
        if not self.real:
            raise BuildError(f"{step} needs real radiographs", source=self.source, remedy="name some with --images")


def read_calibration(
    source: Path, preprocessing: Preprocessing, *, count: int = COUNT, seed: int = 0
) -> CalibrationSet:
    """Choose and prepare a calibration set.

    Args:
        source: A folder, searched at any depth; a table (CSV) with a column `path`, relative to the table's folder; or
            prepared images, `.npy` uint8 (n, 1, s, s), such as a run keeps.
        preprocessing: The model's preprocessing.
        count: Number of radiographs; all, where there are fewer.
        seed: Seed of the choice.

    Raises:
        BuildError: There are no radiographs, or one cannot be read.
    """
    if source.suffix == ".npy":
        return _prepared(source, count, seed)
    paths = _paths(source)
    if not paths:
        raise BuildError(
            "no radiographs there", source=str(source), remedy="a folder, a table, or prepared .npy images"
        )
    chosen = [paths[i] for i in _choice(len(paths), count, seed)]
    try:
        images = np.stack([load_radiograph(path.read_bytes(), preprocessing) for path in chosen])
    except (ImageError, OSError) as err:
        raise BuildError(f"a radiograph of the calibration set cannot be read: {err}", source=str(source)) from err
    root = source if source.is_dir() else source.parent
    return CalibrationSet(images, tuple(_name(path, root) for path in chosen), str(source), seed)


def _choice(available: int, count: int, seed: int) -> Sequence[int]:
    """Ascending indices, the same for the same seed on every machine."""
    if available <= count:
        return range(available)
    return sorted(int(i) for i in np.random.default_rng(seed).choice(available, count, replace=False))


def _paths(source: Path) -> list[Path]:
    if source.suffix.lower() == ".csv":
        try:
            with source.open(newline="", encoding="utf-8-sig") as file:
                return [source.parent / row["path"] for row in csv.DictReader(file) if row["path"]]
        except (OSError, UnicodeDecodeError, KeyError, csv.Error) as err:
            raise BuildError("not a table with a column `path`", source=str(source)) from err
    return sorted(path for path in source.rglob("*") if path.is_file() and is_image_file(path))


def _name(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def _prepared(source: Path, count: int, seed: int) -> CalibrationSet:
    try:
        images = np.load(source, allow_pickle=False)
    except (OSError, ValueError) as err:
        raise BuildError(f"prepared images cannot be read: {err}", source=str(source)) from err
    chosen = list(_choice(len(images), count, seed))
    return CalibrationSet(images[chosen], tuple(f"{source.name}[{i}]" for i in chosen), str(source), seed)
