"""The one preprocessing, against the formula written out in plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_client import Preprocessing, PreprocessingMismatch, read_radiograph


def bicubic_weights(n_in: int, n_out: int) -> np.ndarray:
    """(n_out, n_in): Keys' cubic with a = -0.5, widened by the scale where it shrinks."""
    scale = n_in / n_out
    width = max(scale, 1.0)
    centres = (np.arange(n_out) + 0.5) * scale
    x = np.abs((np.arange(n_in)[None] + 0.5 - centres[:, None]) / width)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def formula(pixels: np.ndarray, size: int, geometry: str) -> np.ndarray:
    """A centred black square of side max(size, width, height), or the image as it is; bicubic to (size, size)."""
    height, width = pixels.shape
    if geometry == "pad":
        side = max(size, width, height)
        square = np.zeros((side, side))
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = pixels
        pixels = square
    rows, columns = bicubic_weights(pixels.shape[0], size), bicubic_weights(pixels.shape[1], size)
    # Rounded and cut to 0..255 between the two directions, as images of 8 bits are.
    wide = np.clip(np.rint(pixels.astype(np.float64) @ columns.T), 0, 255)
    return np.clip(np.rint(rows @ wide), 0, 255)


def test_real_radiographs_agree_with_the_formula_within_1_grey_level(real_data: Path) -> None:
    for file in sorted((real_data / "originals").rglob("*.jpeg"))[::3]:
        radiograph = read_radiograph(file)
        for geometry in ("pad", "stretch"):
            prepared = Preprocessing(geometry=geometry).apply(radiograph)
            expected = formula(np.asarray(radiograph), 224, geometry)
            assert np.abs(prepared[0] - expected).max() <= 1


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (224, 224), (301, 224), (225, 1000), (1, 1), (1, 999)], ids=str)
@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_any_size_agrees_with_the_formula_within_1_grey_level(shape: tuple[int, int], geometry: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    prepared = Preprocessing(geometry=geometry).apply(Image.fromarray(pixels))
    assert prepared.shape == (1, 224, 224)
    assert prepared.dtype == np.uint8
    assert np.abs(prepared[0] - formula(pixels, 224, geometry)).max() <= 1


def test_the_short_way_for_wide_images_gives_the_pixels_of_the_long_one(real_data: Path) -> None:
    rng = np.random.default_rng(0)
    images = [read_radiograph(path) for path in sorted((real_data / "originals").rglob("*.jpeg"))[::4]]
    images += [
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in ((300, 301), (1, 500), (9, 225))
    ]
    for image in images:
        side = max(image.size)
        square = Image.new("L", (side, side), 0)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        long_way = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC))
        assert np.array_equal(Preprocessing().apply(image)[0], long_way)


def test_a_square_of_the_right_size_is_left_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224), dtype=np.uint8)
    for geometry in ("pad", "stretch"):
        assert np.array_equal(Preprocessing(geometry=geometry).apply(Image.fromarray(pixels))[0], pixels)


def test_only_grey_images_are_prepared() -> None:
    with pytest.raises(ValueError, match="mode 'L'"):
        Preprocessing().apply(Image.new("RGB", (10, 10)))


def test_the_record_goes_through_json_and_back() -> None:
    record = Preprocessing(size=96, geometry="stretch")
    assert Preprocessing.from_json(record.to_json()) == record
    assert record.shape == (1, 96, 96)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"size": 0}',
        '{"size": true}',
        '{"size": "224"}',
        '{"geometry": "crop"}',
        '{"interpolation": "nearest"}',
        '{"version": 2}',
        '{"window": "lung"}',
    ],
)
def test_a_record_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(PreprocessingMismatch, match="preprocessing"):
        Preprocessing.from_json(text)
