"""The one image reader: what each kind of file becomes, pixel by pixel, or why it is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xray_client import (
    ImageError,
    ImageTooLarge,
    ImageUnreadable,
    ImageUnsupported,
    Preprocessing,
    load_radiograph,
    read_radiograph,
)

GREY = np.linspace(0, 255, 48 * 64).astype(np.uint8).reshape(48, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8)
FULL_RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
CHECKER = (np.indices((16, 16)).sum(axis=0) % 2).astype(bool)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(pixels: np.ndarray, **options: object) -> bytes:
    return encode(Image.fromarray(pixels), "PNG", **options)


def colour() -> Image.Image:
    return Image.fromarray(np.dstack([GREY, 255 - GREY, np.roll(GREY, 16)]))


def alpha(lowest: int) -> Image.Image:
    image = Image.fromarray(GREY).convert("LA")
    opacity = np.full(GREY.shape, 255, np.uint8)
    opacity[0, 0] = lowest
    image.putalpha(Image.fromarray(opacity))
    return image


def palette() -> Image.Image:
    image = Image.fromarray(255 - GREY)
    image.putpalette(bytes(255 - i // 3 for i in range(768)))  # index i is shown as grey 255 - i
    return image


def two_colours() -> Image.Image:
    image = Image.fromarray(CHECKER.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    return image


def rotated(form: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show it rotated by 90 degrees
    return encode(Image.fromarray(np.rot90(GREY)), form, exif=exif, **options)


def cmyk_jpeg() -> bytes:
    return encode(Image.fromarray(GREY).convert("RGB").convert("CMYK"), "JPEG", quality=100, subsampling=0)


def header_bomb(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def two_frames() -> bytes:
    frame = Image.fromarray(GREY)
    return encode(frame, "TIFF", save_all=True, append_images=[frame])


def animated() -> bytes:
    frame = Image.fromarray(GREY)
    return encode(frame, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)])


# name of the file, its bytes, the grey levels that must come out, how far a level may stray
READ = [
    ("grey-8-bit.png", png(GREY), GREY, 0),
    ("grey-1-bit.png", png(CHECKER), np.where(CHECKER, 255, 0), 0),
    ("grey-16-bit.png", png(GREY.astype(np.uint16) * 257), GREY, 0),
    ("grey-16-bit-full-ramp.png", png(FULL_RAMP), np.rint(FULL_RAMP / 257), 0),
    ("black-16-bit.png", png(np.zeros((8, 8), np.uint16)), np.zeros((8, 8)), 0),
    ("palette.png", encode(palette(), "PNG"), GREY, 0),
    ("grey-as-rgb.png", encode(Image.fromarray(GREY).convert("RGB"), "PNG"), GREY, 0),
    ("opaque-alpha.png", encode(alpha(255), "PNG"), GREY, 0),
    ("turned-by-exif.png", rotated(), GREY, 0),
    ("turned-by-exif.jpg", rotated("JPEG", quality=100), GREY, 2),
    ("palette-1-bit.png", encode(two_colours(), "PNG", bits=1), np.where(CHECKER, 255, 0), 0),
    ("grey-as-rgba.png", encode(Image.fromarray(GREY).convert("RGBA"), "PNG"), GREY, 0),
    ("lzw.tif", encode(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"), GREY, 0),
    ("1-bit.tif", encode(Image.fromarray(CHECKER), "TIFF", compression="group4"), np.where(CHECKER, 255, 0), 0),
    ("grey-as-rgb.bmp", encode(Image.fromarray(GREY).convert("RGB"), "BMP"), GREY, 0),
    ("png-called.jpg", png(GREY), GREY, 0),
    ("no-suffix", png(GREY), GREY, 0),
    ("grey.jpg", encode(Image.fromarray(GREY), "JPEG", quality=100), GREY, 2),
    ("grey-as-ycc.jpeg", encode(Image.fromarray(GREY).convert("RGB"), "JPEG", quality=100), GREY, 2),
    ("cmyk.jpg", cmyk_jpeg(), GREY, 4),
    ("grey.bmp", encode(Image.fromarray(GREY), "BMP"), GREY, 0),
    ("grey.tif", encode(Image.fromarray(GREY), "TIFF"), GREY, 0),
    ("white-is-zero-8-bit.tif", encode(Image.fromarray(GREY), "TIFF", tiffinfo={262: 0}), GREY, 0),
    ("grey-16-bit.tif", encode(Image.fromarray(FULL_RAMP), "TIFF"), np.rint(FULL_RAMP / 257), 0),
]

# name of the file, its bytes, the error, words that it must say
REFUSED = [
    ("colour.png", encode(colour(), "PNG"), ImageUnsupported, "a colour image"),
    ("colour.jpg", encode(colour(), "JPEG"), ImageUnsupported, "a colour image"),
    ("transparent.png", encode(alpha(254), "PNG"), ImageUnsupported, "transparent"),
    ("transparent-level.png", png(GREY, transparency=0), ImageUnsupported, "transparent"),
    ("unscaled-12-bit.png", png(FULL_RAMP >> 4), ImageUnsupported, "reach only 4095 of 65535"),
    ("unscaled-8-bit.png", png(GREY.astype(np.uint16)), ImageUnsupported, "reach only 255 of 65535"),
    ("white-is-zero.tif", encode(Image.fromarray(FULL_RAMP), "TIFF", tiffinfo={262: 0}), ImageUnsupported, "white"),
    ("float.tif", encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"), ImageUnsupported, "type 'F'"),
    ("cmyk-colour.jpg", encode(colour().convert("CMYK"), "JPEG"), ImageUnsupported, "a colour image"),
    ("32-bit.tif", encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"), ImageUnsupported, "type 'I'"),
    ("two-frames.png", animated(), ImageUnsupported, "holds 2 images"),
    ("two-frames.tif", two_frames(), ImageUnsupported, "holds 2 images"),
    ("truncated.png", png(NOISE)[:-200], ImageUnreadable, "truncated or damaged"),
    ("truncated.jpg", encode(Image.fromarray(GREY), "JPEG")[:400], ImageUnreadable, "truncated or damaged"),
    ("empty.png", b"", ImageUnreadable, "the file is empty"),
    ("text-called.png", b"not an image at all\n", ImageUnsupported, "not a PNG, JPEG, TIFF, BMP or DICOM"),
    ("webpage.gif", encode(Image.fromarray(GREY), "GIF"), ImageUnsupported, "not a PNG, JPEG, TIFF, BMP or DICOM"),
    ("header-100-megapixels.png", header_bomb(10_000), ImageTooLarge, "10000 x 10000 pixels"),
    ("header-3600-megapixels.png", header_bomb(60_000), ImageTooLarge, "more than 64 megapixels"),
]


@pytest.mark.parametrize(("name", "data", "expected", "within"), READ, ids=[case[0] for case in READ])
def test_a_grey_radiograph_is_read(tmp_path: Path, name: str, data: bytes, expected: np.ndarray, within: int) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        image = read_radiograph(source)
        assert image.mode == "L"
        assert image.size == (expected.shape[1], expected.shape[0])
        assert np.abs(np.asarray(image, np.int32) - expected).max() <= within


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "data", "error", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_anything_else_is_refused_with_the_reason_and_the_file(
    tmp_path: Path, name: str, data: bytes, error: type[ImageError], words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        read_radiograph(path)
    assert words in caught.value.message
    assert caught.value.source == str(path)


def test_16_bits_are_scaled_and_not_clipped() -> None:
    levels = np.asarray(read_radiograph(png(FULL_RAMP)))
    assert np.bincount(levels.ravel(), minlength=256).min() >= 128  # every grey level is used, 0 and 255 by half a step
    assert np.bincount(levels.ravel()).max() == 257


def test_an_image_that_reads_as_an_array_or_a_pil_image_gives_the_same() -> None:
    twin = GREY.astype(np.uint16) * 257
    for source in (GREY, twin, np.asfortranarray(GREY), Image.fromarray(GREY), Image.fromarray(twin)):
        assert np.array_equal(np.asarray(read_radiograph(source)), GREY)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 4, 3), np.uint8), np.zeros((4, 4)), np.zeros((0, 4), np.uint8), np.zeros((4, 4), np.int16)],
    ids=["three channels", "floating point", "no pixels", "signed"],
)
def test_an_array_that_is_no_grey_image_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ImageUnsupported, match="an array of"):
        read_radiograph(pixels)


def test_a_damaged_pil_image_and_one_of_several_frames_are_refused() -> None:
    with pytest.raises(ImageUnreadable, match="truncated or damaged"):
        read_radiograph(Image.open(io.BytesIO(png(NOISE)[:-200])))
    with pytest.raises(ImageUnsupported, match="holds 2 images"):
        read_radiograph(Image.open(io.BytesIO(two_frames())))


def test_a_file_object_that_cannot_be_read_is_an_image_error(tmp_path: Path) -> None:
    closed = (tmp_path / "closed.png").open("wb")
    closed.close()
    with pytest.raises(ImageUnreadable, match="closed"):
        read_radiograph(closed)


@pytest.mark.parametrize("source", [12, None, io.StringIO("text")], ids=["number", "none", "text file"])
def test_what_is_no_image_at_all_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match="a radiograph"):
        read_radiograph(source)


@pytest.mark.timeout(60)  # nobody writes to the FIFO: opening it would wait for ever
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "this is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
    ids=["missing", "folder", "FIFO", "link to itself"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "chest.png"
    make(path)
    with pytest.raises(ImageUnreadable, match=words):
        read_radiograph(path)


@pytest.mark.parametrize(
    ("size", "at_least", "decoded"),
    [
        ((1920, 1920), None, (1920, 1920)),
        ((1920, 1920), 448, (480, 480)),
        ((1920, 1920), 481, (960, 960)),
        ((1600, 1200), 448, (800, 600)),
        ((1602, 1200), 448, (1602, 1200)),  # the radiograph would lie half a pixel lower in its square
        ((1919, 1919), 448, (1919, 1919)),  # half a pixel would be made up
    ],
    ids=str,
)
def test_a_jpeg_is_decoded_at_reduced_size_only_where_that_shifts_nothing(
    size: tuple[int, int], at_least: int | None, decoded: tuple[int, int]
) -> None:
    data = encode(Image.fromarray(GREY).resize(size), "JPEG")
    assert read_radiograph(data, at_least=at_least).size == decoded


@pytest.mark.parametrize("geometry", ["pad", "stretch"])
def test_a_jpeg_decoded_at_reduced_size_gives_the_input_of_the_full_one_within_4_grey_levels(
    real_data: Path, geometry: str
) -> None:
    preprocessing = Preprocessing(geometry=geometry)
    files = sorted((real_data / "originals").rglob("*.jpeg"))
    assert len(files) == 16
    for file in files[::2]:
        large = read_radiograph(file).resize((1920, 1808), Image.Resampling.BICUBIC)
        data = encode(large, "JPEG", quality=90)
        assert read_radiograph(data, at_least=4 * 224).size == (960, 904)
        full = preprocessing.apply(read_radiograph(data)).astype(np.int32)
        strays = np.abs(load_radiograph(data, preprocessing) - full)
        assert strays.max() <= 4
        assert strays.mean() < 0.3


def test_real_radiographs_are_read_at_their_own_size(twenty_radiographs: Path) -> None:
    for file in sorted(twenty_radiographs.rglob("*.jpeg"))[::4]:
        with Image.open(file) as image:
            assert read_radiograph(file).size == image.size


def test_a_little_colour_such_as_a_stamp_is_let_through_and_more_is_not() -> None:
    pixels = np.dstack([np.full((1024, 64), 90, np.uint8)] * 3)
    pixels[:10, :60, 0] = 255  # 0.9 %
    assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 1024)
    pixels[:20, :60, 0] = 255
    with pytest.raises(ImageUnsupported, match="a colour image"):
        read_radiograph(encode(Image.fromarray(pixels), "PNG"))
    pixels[:, :, 0] = 90 + 24  # the most that JPEG does to grey
    assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 1024)


@pytest.mark.parametrize(
    ("red", "blue", "grey"), [(12, -12, True), (13, -12, False), (13, 13, True), (24, 24, True), (25, 0, False)]
)
def test_grey_is_where_no_two_channels_are_more_than_24_levels_apart(red: int, blue: int, grey: bool) -> None:
    pixels = np.full((64, 64, 3), 100, np.uint8)
    pixels[:, :, 0] += np.uint8(red)
    pixels[:, :, 2] = 100 + blue
    if grey:
        assert read_radiograph(encode(Image.fromarray(pixels), "PNG")).size == (64, 64)
    else:
        with pytest.raises(ImageUnsupported, match="a colour image"):
            read_radiograph(encode(Image.fromarray(pixels), "PNG"))


def test_a_machine_without_the_memory_says_that_and_not_that_the_file_is_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory(self: object) -> None:
        raise MemoryError

    data = encode(Image.fromarray(GREY), "BMP")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(ImageTooLarge, match="memory"):
        read_radiograph(data)
