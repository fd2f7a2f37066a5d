"""The one image reader: what each kind of file becomes, pixel by pixel, or why it is refused."""

from __future__ import annotations

import gzip
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from xray_client import (
    ImageError,
    ImageTooLarge,
    ImageUnreadable,
    ImageUnsupported,
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


def raw_png(samples: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16-bit samples (h, w, channels), as Pillow does not write them."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_sbit(data: bytes, bits: int) -> bytes:
    """A grey PNG that says how many bits of its samples are significant."""
    place = data.index(b"IDAT") - 4
    return data[:place] + chunk(b"sBIT", bytes([bits])) + data[place:]


def rgb48_tiff() -> bytes:
    """A TIFF of 16-bit colour, strips uncompressed, as Pillow does not write it."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile writes it")
    file = io.BytesIO()
    tifffile.imwrite(file, np.dstack([FULL_RAMP] * 3), photometric="rgb")
    return file.getvalue()


def scan_of(data: bytes) -> bytes:
    """The last scan of a progressive JPEG."""
    return data[data.rindex(b"\xff\xda") : -2]


HIGHEST_4095 = TiffImagePlugin.ImageFileDirectory_v2()
HIGHEST_4095[341] = 4095
HIGHEST_4095.tagtype[341] = 3
MARKED = FULL_RAMP >> 2
MARKED[0, :100] = 65535
DIM = np.where(FULL_RAMP < 64000, FULL_RAMP // 20, FULL_RAMP).astype(np.uint16)
JPEG = encode(Image.fromarray(NOISE), "JPEG", quality=95)
PROGRESSIVE = encode(Image.fromarray(NOISE), "JPEG", quality=95, progressive=True)
with Image.open(io.BytesIO(PROGRESSIVE)) as shown:
    NOISE_SHOWN = np.asarray(shown)

# name of the file, its bytes, the grey levels that must come out, how far a level may stray
READ = [
    ("grey-8-bit.png", png(GREY), GREY, 0),
    ("grey-16-bit.png", png(GREY.astype(np.uint16) * 257), GREY, 0),
    ("grey-16-bit-full-ramp.png", png(FULL_RAMP), np.rint(FULL_RAMP / 257), 0),
    ("palette.png", encode(palette(), "PNG"), GREY, 0),
    ("grey-as-rgb.png", encode(Image.fromarray(GREY).convert("RGB"), "PNG"), GREY, 0),
    ("opaque-alpha.png", encode(alpha(255), "PNG"), GREY, 0),
    ("eight-levels.png", png(NOISE // 32), NOISE // 32, 0),
    ("turned-by-exif.png", rotated(), GREY, 0),
    ("turned-by-exif.jpg", rotated("JPEG", quality=100), GREY, 2),
    ("grey-as-rgba.png", encode(Image.fromarray(GREY).convert("RGBA"), "PNG"), GREY, 0),
    ("lzw.tif", encode(Image.fromarray(GREY), "TIFF", compression="tiff_lzw"), GREY, 0),
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
    ("14-bit-said.png", with_sbit(png(FULL_RAMP >> 2), 14), np.rint((FULL_RAMP >> 2) / 16383 * 255), 1),
    ("12-bit-scaled-and-said.png", with_sbit(png(FULL_RAMP & 0xFFF0), 12), np.rint((FULL_RAMP & 0xFFF0) / 257), 0),
    (
        "12-bit-said.tif",
        encode(Image.fromarray(FULL_RAMP >> 4), "TIFF", tiffinfo=HIGHEST_4095),
        np.rint((FULL_RAMP >> 4) / 4095 * 255),
        1,
    ),
    ("dim-and-of-full-depth.png", png(DIM), np.rint(DIM / 257), 0),
    ("progressive.jpg", PROGRESSIVE, NOISE_SHOWN, 0),
]

# name of the file, its bytes, the error, words that it must say
REFUSED = [
    ("colour.png", encode(colour(), "PNG"), ImageUnsupported, "a colour image"),
    ("colour.jpg", encode(colour(), "JPEG"), ImageUnsupported, "a colour image"),
    ("one-bit.png", png(CHECKER), ImageUnsupported, "the picture is flat: 2 grey levels"),
    ("one-bit.tif", encode(Image.fromarray(CHECKER), "TIFF", compression="group4"), ImageUnsupported, "is flat: 2"),
    ("black.png", png(np.zeros((8, 8), np.uint16)), ImageUnsupported, "the picture is flat: 1 grey level"),
    ("seven-levels.bmp", encode(Image.fromarray(NOISE // 37), "BMP"), ImageUnsupported, "is flat: 7 grey levels"),
    ("white.jpg", encode(Image.new("L", (64, 48), 255), "JPEG"), ImageUnsupported, "the picture is flat"),
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
    ("webpage.gif", encode(Image.fromarray(GREY), "GIF"), ImageUnsupported, "a GIF file"),
    ("photograph.webp", encode(Image.fromarray(GREY), "WEBP"), ImageUnsupported, "a WebP file"),
    ("photograph.avif", b"\0\0\0 ftypavif\0\0\0\0", ImageUnsupported, "an AVIF file"),
    ("photograph.heic", b"\0\0\0 ftypheic\0\0\0\0", ImageUnsupported, "a HEIC file"),
    ("archive.jp2", b"\0\0\0\x0cjP  \r\n\x87\n", ImageUnsupported, "a JPEG 2000 file"),
    ("archive.jxl", b"\xff\x0a\0\0\0\0\0\0", ImageUnsupported, "a JPEG XL file"),
    ("report.pdf", b"%PDF-1.7\n", ImageUnsupported, "a PDF file"),
    ("packed.png.gz", gzip.compress(png(GREY)), ImageUnsupported, "a gzip file"),
    ("14-bit.png", png(FULL_RAMP >> 2), ImageUnsupported, "reach only 16383 of 65535, so their true depth"),
    ("14-bit-and-a-marker.png", png(MARKED), ImageUnsupported, "of which 99 % reach only 16383 of 65535"),
    ("14-bit.tif", encode(Image.fromarray(FULL_RAMP >> 2), "TIFF"), ImageUnsupported, "true depth is not known"),
    ("48-bit-colour.png", raw_png(np.dstack([FULL_RAMP >> 4] * 3), 2), ImageUnsupported, "a depth of 16 bits"),
    (
        "16-bit-alpha.png",
        raw_png(np.dstack([FULL_RAMP, FULL_RAMP * 0 + 65535]), 4),
        ImageUnsupported,
        "a depth of 16 bits",
    ),
    ("64-bit-colour.png", raw_png(np.dstack([FULL_RAMP] * 4), 6), ImageUnsupported, "a depth of 16 bits"),
    ("48-bit-colour.tif", rgb48_tiff(), ImageUnsupported, "a depth of 16 bits"),
    ("half-and-ended.jpg", JPEG[: len(JPEG) // 2] + b"\xff\xd9", ImageUnreadable, "truncated or damaged"),
    ("zeros-inside.jpg", JPEG[:2000] + bytes(400) + JPEG[2400:], ImageUnreadable, "truncated or damaged"),
    (
        "half-and-ended-progressive.jpg",
        PROGRESSIVE[: len(PROGRESSIVE) // 2] + b"\xff\xd9",
        ImageUnreadable,
        "truncated or damaged",
    ),
    (
        "many-scans.jpg",
        PROGRESSIVE[:-2] + scan_of(PROGRESSIVE) * 101 + b"\xff\xd9",
        ImageUnsupported,
        "more than 100 scans",
    ),
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


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP"])
def test_what_the_process_sets_for_its_own_images_changes_nothing(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag that fills up truncated images, a limit of pixels, warnings that are errors."""
    whole = encode(Image.fromarray(NOISE), form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        expected = np.asarray(read_radiograph(whole))
        with pytest.raises(ImageUnreadable, match="truncated or damaged"):
            read_radiograph(whole[: len(whole) // 2])
        assert ImageFile.LOAD_TRUNCATED_IMAGES
    monkeypatch.undo()
    assert np.array_equal(np.asarray(read_radiograph(whole)), expected)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_detectors_samples_are_refused_as_an_array(bits: int) -> None:
    with pytest.raises(ImageUnsupported, match=rf"reach only {2**bits - 1} of 65535, so their true depth"):
        read_radiograph(FULL_RAMP >> (16 - bits))


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
