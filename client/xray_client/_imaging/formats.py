"""Kinds of files by their first bytes: those that are read, and those that are refused by name."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from xray_client._exceptions import ImageUnsupported

_READ = "PNG, JPEG, TIFF, BMP or DICOM"
# A radiograph may come as any of these, and none of them is common enough to carry its library.
_BY_NAME = (
    (b"\x00\x00\x00\x0cjP  ", 0, "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", 0, "a JPEG 2000 file"),
    (b"\x00\x00\x00\x0cJXL ", 0, "a JPEG XL file"),
    (b"\xff\x0a", 0, "a JPEG XL file"),
    (b"WEBP", 8, "a WebP file"),
    (b"ftyphei", 4, "a HEIC file"),
    (b"ftypmif1", 4, "a HEIC file"),
    (b"ftypavif", 4, "an AVIF file"),
    (b"GIF8", 0, "a GIF file"),
    (b"\x1f\x8b", 0, "a gzip file"),
    (b"PK\x03\x04", 0, "a ZIP file"),
    (b"%PDF", 0, "a PDF file"),
    (b"\x93NUMPY", 0, "a NumPy file"),
    (b"n+1\x00", 344, "a NIfTI file"),
)
_ARCHIVES = ("a gzip file", "a ZIP file")

_lock = threading.Lock()
_decoding = 0
_before: tuple[bool, int | None] = False, None


def open_image(data: bytes) -> Image.Image:
    """Open a PNG, JPEG, TIFF or BMP by its first bytes, not loaded.

    The classes are called instead of `Image.open`, which also asks every other plugin that the process has loaded.

    Raises:
        ImageUnsupported: Another format, which the error names where it is known.
    """
    file = io.BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(file)
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.jpeg_factory(file)  # of several pictures in one file as well
    if data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return TiffImagePlugin.TiffImageFile(file)
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file)
    for mark, place, name in _BY_NAME:
        if data.startswith(mark, place):
            raise ImageUnsupported(name, remedy="unpack it first" if name in _ARCHIVES else "convert it to PNG")
    raise ImageUnsupported(f"not a {_READ} image", remedy="convert it to PNG")


@contextmanager
def pillow_by_our_rules() -> Iterator[None]:
    """Let Pillow refuse truncated files and leave the number of pixels to the reader, whatever the process has set.

    The two settings belong to all threads. They are the process's own again as soon as no thread decodes.
    """
    global _decoding, _before
    with _lock:
        if _decoding == 0:
            _before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        _decoding += 1
    try:
        yield
    finally:
        with _lock:
            _decoding -= 1
            if _decoding == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = _before
