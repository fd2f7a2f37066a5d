"""Depth of grey samples: which pictures pass, which are refused, and what their levels are on 8 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_client import ImageUnsupported, read_radiograph
from xray_client._imaging.depth import check_depth, check_levels, to_8_bits

RAMP = np.linspace(0, 1, 300 * 200).reshape(300, 200)


def samples(bits: int, *, brightest: float = 1.0) -> np.ndarray:
    """Unscaled samples of a detector of so many bits, uint16 (300, 200)."""
    return np.round(RAMP * brightest * (2**bits - 1)).astype(np.uint16)


def with_bright(pixels: np.ndarray, count: int, value: int) -> np.ndarray:
    marked = pixels.copy()
    marked.ravel()[:count] = value
    return marked


# name, samples, bits of the container
PASS = [
    ("16 in 16", samples(16), 16),
    ("15 in 16, a factor of two", samples(15), 16),
    ("12 in 12", samples(12), 12),
    ("11 in 12", samples(11), 12),
    ("8 bits stay as they are", samples(5).astype(np.uint8), 8),
    ("dim, 12 bits shifted to the top", samples(12, brightest=0.2) << 4, 16),
    ("dim, 14 bits shifted to the top", samples(14, brightest=0.1) << 2, 16),
    ("dim, 8 bits scaled to 16", samples(8, brightest=0.2) * 257, 16),
    ("dim, 8 bits shifted to 16, up to 31", samples(5) << 8, 16),
    ("1 % bright", with_bright(samples(12), 600, 65535), 16),
    ("black", np.zeros((9, 9), np.uint16), 16),
]
# name, samples, bits of the container, words of the message
REFUSED = [
    ("14 in 16", samples(14), 16, "16-bit samples that reach only 16383 of 65535"),
    ("12 in 16", samples(12), 16, "reach only 4095 of 65535"),
    ("8 in 16", samples(8), 16, "reach only 255 of 65535"),
    ("12 in 14", samples(12), 14, "14-bit samples that reach only 4095 of 16383"),
    ("11 in 14", samples(11), 14, "reach only 2047 of 16383"),
    ("10 in 12", samples(10), 12, "reach only 1023 of 4095"),
    ("12 in 16 with a dead pixel", with_bright(samples(12), 1, 65535), 16, "99 % reach only 4095 of 65535"),
    ("12 in 16 with a marker", with_bright(samples(12), 599, 65535), 16, "99 % reach only 4095 of 65535"),
    ("8 bits shifted to 12, in 16", samples(8) << 4, 16, "reach only 4080 of 65535"),
    ("10 bits shifted to 12, in 16", samples(10) << 2, 16, "reach only 4092 of 65535"),
    ("even numbers only", samples(12) << 1, 16, "reach only 8190 of 65535"),
]


@pytest.mark.parametrize(("name", "pixels", "bits"), PASS, ids=[case[0] for case in PASS])
def test_samples_on_the_full_scale_pass_however_dim(name: str, pixels: np.ndarray, bits: int) -> None:
    check_depth(pixels, bits)


@pytest.mark.parametrize(("name", "pixels", "bits", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_samples_in_the_lower_part_of_their_container_are_refused(
    name: str, pixels: np.ndarray, bits: int, words: str
) -> None:
    with pytest.raises(ImageUnsupported, match=words) as caught:
        check_depth(pixels, bits, kind="DICOM: ", remedy="say so")
    assert caught.value.message.startswith(f"DICOM: {bits}-bit")
    assert "depth" in caught.value.message
    assert caught.value.remedy == "say so"


@pytest.mark.parametrize(("black", "white"), [(0, 65535), (0, 16383), (0, 255), (1000, 5095), (65534, 65535)])
def test_levels_are_rounded_and_clipped_never_wrapped(black: int, white: int) -> None:
    values = np.arange(65536, dtype=np.uint16)
    expected = np.floor(np.clip((values - float(black)) / (white - black), 0, 1) * 255 + 0.5)
    assert np.array_equal(to_8_bits(values, white, black), expected)
    assert np.array_equal(to_8_bits(values[:256].astype(np.uint8), white, black), expected[:256])


def test_a_picture_of_fewer_than_8_grey_levels_is_flat() -> None:
    blank = np.full((2000, 3000), 7, np.uint8)
    for levels in range(1, 12):
        pixels = blank.copy()
        pixels[1234, 1000 : 1000 + levels] = 10 * np.arange(levels) + 7  # too few pixels for a quick look to find
        if levels < 8:
            with pytest.raises(ImageUnsupported, match=f"flat: {levels} grey level"):
                check_levels(Image.fromarray(pixels))
        else:
            check_levels(Image.fromarray(pixels))


def test_real_radiographs_scaled_to_16_bits_pass_and_cut_to_12_are_refused(twenty_radiographs: Path) -> None:
    for file in sorted(twenty_radiographs.rglob("*.jpeg")):
        grey = np.asarray(read_radiograph(file)).astype(np.uint16)
        check_depth(np.round(grey / 255 * 65535).astype(np.uint16), 16)
        check_depth(np.round(grey / 255 * 4095).astype(np.uint16), 12)
        with pytest.raises(ImageUnsupported, match="depth"):
            check_depth(np.round(grey / 255 * 4095).astype(np.uint16), 16)
