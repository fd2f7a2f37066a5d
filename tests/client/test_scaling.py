"""Scaling across: pixel for pixel what Pillow gives, whatever the size and whatever is in the image."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from xray_client import ImageError, Preprocessing, _scaling, load_radiograph, read_radiograph
from xray_client._scaling import shrink_across

SIZE = 224
AT_LEAST = 4 * SIZE  # as `load_radiograph` decodes JPEG


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small images too."""
    monkeypatch.setattr(_scaling, "WORTHWHILE", 0)
    _scaling._weights.cache_clear()
    yield
    _scaling._weights.cache_clear()


def by_pillow(image: Image.Image, width: int) -> npt.NDArray[np.uint8]:
    return np.asarray(image.resize((width, image.height), Image.Resampling.BICUBIC))


def plainly(radiograph: Image.Image, geometry: str) -> npt.NDArray[np.uint8]:
    """The preprocessing by Pillow alone, written out."""
    if geometry == "pad":
        side = max(SIZE, *radiograph.size)
        square = Image.new("L", (side, side), 0)
        square.paste(radiograph, ((side - radiograph.width) // 2, (side - radiograph.height) // 2))
        radiograph = square
    return np.asarray(radiograph.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_every_real_file_is_prepared_pixel_for_pixel_as_by_pillow(real_data: Path, geometry: str, always: None) -> None:
    files = [*(real_data / "originals").rglob("*.jpeg"), *(real_data / "dicom").iterdir()]
    files += sorted((real_data / "chest_xray_640").rglob("*.jp*g"))[::100]
    compared = 0
    for file in files:
        try:
            radiograph = read_radiograph(file, at_least=AT_LEAST)
        except ImageError:  # not a radiograph: what is refused is refused before
            continue
        prepared = load_radiograph(file, Preprocessing(geometry=geometry))[0]
        assert np.array_equal(prepared, plainly(radiograph, geometry)), file
        compared += 1
    assert compared > 20


PICTURES = {
    "noise": lambda shape: np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
    "black and white": lambda shape: np.where(np.random.default_rng(1).random(shape) < 0.5, 255, 0).astype(np.uint8),
    "white": lambda shape: np.full(shape, 255, np.uint8),
    "a ramp": lambda shape: np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8), shape),
    "stripes": lambda shape: np.broadcast_to((np.arange(shape[1]) // 3 % 2 * 255).astype(np.uint8), shape),
}


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("width", [448, 449, 1023, 1616, 4280, 9001])
@pytest.mark.parametrize("size", [224, 33, 8, 1])
def test_any_width_gives_pillows_pixels(always: None, name: str, width: int, size: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(PICTURES[name]((131, width))))
    assert np.array_equal(np.asarray(shrink_across(image, size)), by_pillow(image, size))


def test_it_is_the_quick_way_that_gives_them(always: None) -> None:
    weights = _scaling._weights(1616, SIZE)
    assert weights is not None
    assert 1e-5 < weights.doubt < 0.01


def test_where_float32_leaves_it_open_the_integers_decide(always: None) -> None:
    """With a doubt of more than half a grey level all do: what the products say no longer matters."""
    image = Image.fromarray(PICTURES["noise"]((257, 1616)))
    weights = _scaling._weights(1616, SIZE)
    assert weights is not None
    everything = _scaling.Weights(weights.starts, weights.matrices * 0, weights.places, weights.integers, 0.51)
    assert np.array_equal(_scaling._across(np.asarray(image), everything, SIZE), by_pillow(image, SIZE))


def test_a_pillow_that_computes_otherwise_does_it_by_itself(always: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _scaling._pillows_weights

    def wrong(columns: int, width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        places, integers = right(columns, width)
        return places, integers + 20_000

    monkeypatch.setattr(_scaling, "_pillows_weights", wrong)
    assert _scaling._weights(1616, SIZE) is None
    image = Image.fromarray(PICTURES["noise"]((140, 1616)))
    assert np.array_equal(np.asarray(shrink_across(image, SIZE)), by_pillow(image, SIZE))


def test_threads_do_not_meet(always: None) -> None:
    images = [Image.fromarray(PICTURES["noise"]((300, width))) for width in range(900, 908)] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda image: np.asarray(shrink_across(image, SIZE)), images))
    assert all(np.array_equal(got, by_pillow(image, SIZE)) for got, image in zip(together, images, strict=True))
