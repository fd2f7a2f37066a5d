"""The one preprocessing, against the formula written out in plain numpy."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from xray_client import Preprocessing, PreprocessingMismatch, load_radiograph, read_radiograph


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


@pytest.mark.parametrize(
    ("version", "geometry", "size", "part"),
    [
        (1, "pad", (1920, 1808), 2),
        (1, "pad", (1922, 1808), 1),  # its offset in the square would be rounded
        (1, "pad", (1919, 1919), 1),
        (1, "pad", (1600, 1200), 1),
        (1, "stretch", (8000, 8000), 8),
        (2, "pad", (895, 400), 1),
        (2, "pad", (896, 401), 2),
        (2, "pad", (401, 1792), 4),
        (2, "pad", (1200, 1198), 1),  # the square's upper edge would lie within a pixel, and the radiograph beside it
        (2, "pad", (1200, 1196), 2),
        (2, "pad", (1200, 1174), 2),
        (2, "pad", (1201, 1201), 2),
        (2, "stretch", (1792, 895), 1),
        (2, "stretch", (1793, 897), 2),
    ],
    ids=str,
)
def test_a_jpeg_is_decoded_at_a_fraction_of_its_size_where_its_version_says(
    version: int, geometry: str, size: tuple[int, int], part: int
) -> None:
    assert Preprocessing(geometry=geometry, version=version).fraction(*size) == part


@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_a_jpeg_decoded_at_a_fraction_lies_where_the_whole_one_does(real_data: Path, geometry: str) -> None:
    """Without sharp edges nothing but a shift of a part of a pixel could tell the two apart."""
    radiograph = read_radiograph(min((real_data / "originals").rglob("*.jpeg")))
    preprocessing = Preprocessing(geometry=geometry)
    rng = np.random.default_rng(0)
    for base in ((1200, 1000), (700, 1200), (1200, 1192), (1200, 1200)):
        for _ in range(4):
            width, height = (int(side + rng.integers(8)) for side in base)
            file = io.BytesIO()
            smooth = radiograph.resize((width, height)).filter(ImageFilter.GaussianBlur(6))
            smooth.save(file, "JPEG", quality=95)
            whole = preprocessing.apply(read_radiograph(file.getvalue())).astype(int)
            assert np.abs(load_radiograph(file.getvalue(), preprocessing) - whole).max() <= 6, (width, height)


@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_version_2_gives_the_grey_levels_of_the_whole_radiograph_within_2_in_999_of_1000_pixels(
    real_data: Path, geometry: str
) -> None:
    preprocessing, apart = Preprocessing(geometry=geometry), []
    for path in sorted((real_data / "originals").rglob("*.jpeg")):
        whole = preprocessing.apply(read_radiograph(path)).astype(int)
        apart.append(np.abs(load_radiograph(path, preprocessing) - whole))
    assert np.mean(np.array(apart) <= 2) > 0.999
    assert np.max(apart) <= 13
    assert np.mean(apart) < 0.2
    assert sum(bool(each.any()) for each in apart) >= 8, "most were decoded at a fraction"


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
        '{"version": 0}',
        '{"version": 3}',
        '{"version": true}',
        '{"window": "lung"}',
    ],
)
def test_a_record_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(PreprocessingMismatch, match="preprocessing"):
        Preprocessing.from_json(text)
