"""Copies of a radiograph that are not the same file."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from finetune.data.duplicates import NEAR_DUPLICATE_BITS, close_pairs, near_duplicates, radiograph_hash
from finetune.data.folders import scan
from finetune.data.records import Radiograph, merge_duplicates, split_by_patient
from xray_client import Preprocessing, load_radiograph


def _saved_as_jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=30)
    return Image.open(file)


_TREATMENTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed hard": _saved_as_jpeg,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "at half the size": lambda image: image.resize((112, 112)).resize((224, 224)),
}


@pytest.fixture(scope="module", params=[20, 480])
def radiographs(request: pytest.FixtureRequest) -> np.ndarray:
    """uint8 (20 or 480, 224, 224), patients and classes mixed, no two files alike."""
    if request.param == 20:
        listed = scan(request.getfixturevalue("twenty_radiographs")).radiographs
    else:
        everything = scan(request.getfixturevalue("real_data") / "chest_xray_224").radiographs
        listed = everything[:480:2] + everything[-480::2]
    return np.stack([load_radiograph(radiograph.path, Preprocessing(geometry="stretch"))[0] for radiograph in listed])


def test_different_radiographs_are_no_copies(radiographs: np.ndarray) -> None:
    assert near_duplicates(radiographs) == []


@pytest.mark.parametrize("treatment", _TREATMENTS)
def test_a_copy_saved_anew_is_found_and_nothing_else(radiographs: np.ndarray, treatment: str) -> None:
    originals = range(0, min(len(radiographs), 60), 3)
    copied = [np.asarray(_TREATMENTS[treatment](Image.fromarray(radiographs[i]))) for i in originals]
    found = near_duplicates(np.concatenate([radiographs, copied]))
    assert [(pair.first, pair.second) for pair in found] == [(i, len(radiographs) + i // 3) for i in originals]


def test_a_radiograph_at_another_resolution_is_found(real_data: Path) -> None:
    large = scan(real_data / "chest_xray_640").radiographs[::40]
    small = {radiograph.path.name: radiograph for radiograph in scan(real_data / "chest_xray_224").radiographs}
    prepared = Preprocessing(geometry="stretch")
    images = [load_radiograph(radiograph.path, prepared)[0] for radiograph in large]
    images += [load_radiograph(small[radiograph.path.name].path, prepared)[0] for radiograph in large]
    pairs = near_duplicates(np.stack(images))
    assert [(pair.first, pair.second) for pair in pairs] == [(i, len(large) + i) for i in range(len(large))]


def test_rows_that_are_shared_are_one_file_and_make_no_pair(radiographs: np.ndarray) -> None:
    brighter = _TREATMENTS["brighter"](Image.fromarray(radiographs[0]))
    images = np.stack([radiographs[1], radiographs[0], np.asarray(brighter), np.zeros((224, 224), np.uint8)])
    found = near_duplicates(images, np.array([1, 0, 0, 2, 1]))
    assert [(pair.first, pair.second) for pair in found] == [(0, 3)]


def test_pairs_are_found_across_the_blocks_that_are_compared_at_a_time() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.random((5000, 256)) < 0.5
    hashes[4900] = hashes[3]
    hashes[4900, :NEAR_DUPLICATE_BITS] ^= True
    hashes[4999] = hashes[2500]
    hashes[4999, : NEAR_DUPLICATE_BITS + 1] ^= True
    started = time.process_time()  # this process alone, however busy the machine is
    assert list(close_pairs(hashes)) == [(3, 4900, NEAR_DUPLICATE_BITS)]
    assert time.process_time() - started < 30


def test_the_hash_of_a_radiograph_is_256_bits(radiographs: np.ndarray) -> None:
    assert (radiograph_hash(radiographs[0]).shape, radiograph_hash(radiographs[0]).dtype) == ((256,), bool)


def test_a_copy_in_test_takes_its_patient_out_of_training(radiographs: np.ndarray) -> None:
    count = min(len(radiographs), 60)
    listed = [Radiograph(Path(f"{i}.png"), i % 2, f"P{i}", "train") for i in range(count)]
    listed.append(Radiograph(Path("copy.png"), 0, "somebody else", "test"))
    copy = np.asarray(_saved_as_jpeg(Image.fromarray(radiographs[4])))
    pairs = near_duplicates(np.concatenate([radiographs[:count], copy[None]]))
    merged = merge_duplicates(listed, [str(i) for i in range(count + 1)], pairs)
    splits = split_by_patient(merged, val_fraction=0.2, seed=0)
    assert splits.leaked_patients == ("P4",)
    assert 4 not in (*splits.train, *splits.val)
    assert splits.test.tolist() == [count]
