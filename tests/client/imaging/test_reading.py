"""The one image reader on whole files: JPEG decoded at a part of its size, colour, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.client.imaging.test_reader import GREY, PROGRESSIVE, encode, scan_of
from tests.helpers.radiographs import grey
from xray_client import (
    ImageTooLarge,
    ImageUnsupported,
    Preprocessing,
    load_radiograph,
    read_radiograph,
)
from xray_client._imaging.reader import load_within


@pytest.mark.parametrize(
    ("size", "at_least", "decoded"),
    [
        ((1920, 1920), None, (1920, 1920)),
        ((1920, 1920), 448, (480, 480)),
        ((1920, 1920), 481, (960, 960)),
        ((1601, 1199), 448, (801, 600)),
    ],
    ids=str,
)
def test_a_jpeg_is_decoded_at_the_size_that_is_asked_for(
    size: tuple[int, int], at_least: int | None, decoded: tuple[int, int]
) -> None:
    data = encode(Image.fromarray(GREY).resize(size), "JPEG")
    assert read_radiograph(data, at_least=at_least).size == decoded


def test_what_cannot_be_shrunk_while_it_is_decoded_is_prepared_whole(real_data: Path) -> None:
    radiograph = read_radiograph(min((real_data / "originals").rglob("*.jpeg"))).resize((1001, 903))
    whole = Preprocessing().apply(radiograph)
    for source in (encode(radiograph, "PNG"), encode(radiograph, "TIFF"), np.asarray(radiograph), radiograph):
        assert np.array_equal(load_radiograph(source, Preprocessing()), whole)


def test_a_jpeg_that_is_to_be_turned_is_decoded_whole(real_data: Path) -> None:
    """A turned one begins its centred square at the same pixel as one that lies upright in its file."""
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    radiograph = read_radiograph(min((real_data / "originals").rglob("*.jpeg"))).resize((1001, 903))
    data = encode(radiograph, "JPEG", exif=turned)
    assert Preprocessing().fraction(1001, 903) == 2
    upright = read_radiograph(data)
    assert np.array_equal(load_radiograph(data, Preprocessing()), Preprocessing().apply(upright))


def test_real_radiographs_are_read_at_their_own_size(twenty_radiographs: Path) -> None:
    for file in sorted(twenty_radiographs.rglob("*.jpeg"))[::4]:
        with Image.open(file) as image:
            assert read_radiograph(file).size == image.size


def test_a_little_colour_such_as_a_stamp_is_let_through_and_more_is_not() -> None:
    pixels = np.dstack([np.tile(np.arange(80, 144, dtype=np.uint8), (1024, 1))] * 3)
    pixels[:10, :60, 0] = 255  # 0.9 %
    assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 1024)
    pixels[:20, :60, 0] = 255
    with pytest.raises(ImageUnsupported, match="a colour image"):
        read_radiograph(encode(Image.fromarray(pixels), "PNG"))
    pixels[:, :, 0] = pixels[:, :, 1] + 24  # the most that JPEG does to grey
    assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 1024)


@pytest.mark.parametrize(
    ("red", "blue", "is_grey"), [(12, -12, True), (13, -12, False), (13, 13, True), (24, 24, True), (25, 0, False)]
)
def test_grey_is_where_no_two_channels_are_more_than_24_levels_apart(red: int, blue: int, is_grey: bool) -> None:
    pixels = np.dstack([grey(100, (64, 64))] * 3)
    pixels[:, :, 0] += np.uint8(red)
    pixels[:, :, 2] = pixels[:, :, 1] + blue
    if is_grey:
        assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 64)
    else:
        with pytest.raises(ImageUnsupported, match="a colour image"):
            read_radiograph(encode(Image.fromarray(pixels), "PNG"))


def test_the_scans_of_a_jpeg_count_with_its_pixels() -> None:
    scans = PROGRESSIVE.count(b"\xff\xda")
    more = PROGRESSIVE[:-2] + scan_of(PROGRESSIVE) * (11 - scans) + PROGRESSIVE[-2:]
    assert load_within(PROGRESSIVE, Preprocessing(), 48 * 64).shape == (1, 224, 224)
    with pytest.raises(ImageTooLarge, match="64 x 48 pixels in 11 scans"):
        load_within(more, Preprocessing(), 48 * 64)
    with pytest.raises(ImageTooLarge, match="64 x 48 pixels, more than"):
        load_within(PROGRESSIVE, Preprocessing(), 48 * 64 - 1)


def test_a_machine_without_the_memory_says_that_and_not_that_the_file_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(self: object) -> None:
        raise MemoryError

    data = encode(Image.fromarray(GREY), "BMP")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(ImageTooLarge, match="memory"):
        read_radiograph(data)
