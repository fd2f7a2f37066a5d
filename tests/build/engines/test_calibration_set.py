"""Calibration sets: real radiographs, chosen by seed, known by their hash."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_build.errors import BuildError
from xray_client import Preprocessing, load_radiograph


def test_the_same_seed_is_the_same_set_and_another_seed_another(twenty_radiographs: Path) -> None:
    folder, preprocessing = twenty_radiographs, Preprocessing()
    one, again, other = (read_calibration(folder, preprocessing, count=5, seed=seed) for seed in (0, 0, 1))
    assert one.names == again.names
    assert one.sha256 == again.sha256
    assert one.sha256 != other.sha256
    assert one.about() == {
        "source": str(folder),
        "images": 5,
        "seed": 0,
        "radiographs": True,
        "sha256": one.sha256,
    }


def test_radiographs_are_prepared_by_the_one_reader_and_the_models_preprocessing(twenty_radiographs: Path) -> None:
    preprocessing = Preprocessing(geometry="stretch")
    chosen = read_calibration(twenty_radiographs, preprocessing, count=3)
    for name, image in zip(chosen.names, chosen.images, strict=True):
        assert np.array_equal(image, load_radiograph((twenty_radiographs / name).read_bytes(), preprocessing))


def test_a_small_folder_is_taken_whole(twenty_radiographs: Path) -> None:
    assert len(read_calibration(twenty_radiographs, Preprocessing()).images) == 20


def test_a_table_names_files_relative_to_itself(twenty_radiographs: Path, tmp_path: Path) -> None:
    source = next(twenty_radiographs.rglob("*.jpeg"))
    (tmp_path / "one.jpeg").write_bytes(source.read_bytes())
    (tmp_path / "table.csv").write_text(f"label,path\nNormal,one.jpeg\nNormal,{source}\n")
    chosen = read_calibration(tmp_path / "table.csv", Preprocessing())
    assert np.array_equal(chosen.images[0], chosen.images[1])


def test_prepared_images_are_taken_as_they_are(twenty_radiographs: Path, tmp_path: Path) -> None:
    prepared = read_calibration(twenty_radiographs, Preprocessing()).images
    np.save(tmp_path / "parity_images.npy", prepared)
    chosen = read_calibration(tmp_path / "parity_images.npy", Preprocessing(), count=8)
    assert [
        f"parity_images.npy[{i}]" for i in range(20) if (prepared[i] == chosen.images).all(axis=(1, 2, 3)).any()
    ] == [*chosen.names]


def test_what_holds_no_radiographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no radiographs there"):
        read_calibration(tmp_path, Preprocessing())
    (tmp_path / "table.csv").write_text("file\nx.png\n")
    with pytest.raises(BuildError, match="column `path`"):
        read_calibration(tmp_path / "table.csv", Preprocessing())
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(BuildError, match=r"a radiograph of the calibration set cannot be read: .*"):
        read_calibration(tmp_path, Preprocessing())
    np.save(tmp_path / "floats.npy", np.zeros((2, 1, 8, 8), np.float32))
    with pytest.raises(BuildError, match="is not uint8"):
        read_calibration(tmp_path / "floats.npy", Preprocessing())


def test_phantoms_are_refused_where_only_radiographs_can_tell() -> None:
    drawn = CalibrationSet(np.zeros((1, 1, 8, 8), np.uint8), ("phantom",), "phantoms", real=False)
    with pytest.raises(BuildError, match=r"FP16 needs real radiographs .*--images"):
        drawn.need_real("FP16")
