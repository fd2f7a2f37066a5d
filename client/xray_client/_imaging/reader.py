"""Image reader: a radiograph in PNG, JPEG, TIFF, BMP or DICOM -> one grey 8-bit image.

The bytes decide the format, not the file's name. An image that is not fully understood is refused with the reason,
never guessed: a wrong picture gives a confident wrong answer.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from xray_client._exceptions import ImageError, ImageTooLarge, ImageUnreadable, ImageUnsupported

from .dicom import decode_dicom, is_dicom
from .preprocessing import Preprocessing

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | Image.Image"
)

MAX_PIXELS = 64_000_000  # four times the largest flat-panel detectors; decodes to 64 MB of grey
MAX_BYTES = 256 * 2**20

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MODES = ("1", "L", "LA", "PA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
# A grey image saved as colour JPEG strays by a few levels; a colour photograph by dozens.
_COLOUR_SPREAD = 24
_COLOUR_SHARE = 0.01
# A 16-bit file whose samples all lie in its lowest sixteenth is 8- to 12-bit data stored unscaled: 16 to 256 times
# too dark.
_UNSCALED_12_BIT = 4095
_EXIF_ORIENTATION = 274
_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 262, 0


def load_radiograph(source: ImageSource, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """Read and preprocess one radiograph, from a file to the model's input.

    Args:
        source: Path, bytes, binary file object, grey uint8 or uint16 array (h, w), or PIL image.
        preprocessing: Preprocessing of the model that will see it.

    Returns:
        uint8 (1, size, size).

    Raises:
        ImageError: The file cannot be read or is not a single grey radiograph.
    """
    # A JPEG decoded at four times the input's side strays by 4 grey levels at the sharpest edges, at twice by 13.
    return preprocessing.apply(read_radiograph(source, at_least=4 * preprocessing.size))


def read_radiograph(source: ImageSource, *, at_least: int | None = None) -> Image.Image:
    """Read one radiograph as a grey 8-bit image (mode "L").

    Args:
        source: Path, bytes, binary file object, grey uint8 or uint16 array (h, w), or PIL image.
        at_least: Smallest side, pixels, to which a JPEG may be decoded at a half, quarter or eighth of its size if that
            shifts nothing; None = full size.

    Raises:
        ImageUnreadable: Missing, empty, truncated, damaged, or not a regular file.
        ImageUnsupported: Another format, colour, several frames, transparency, floating point.
        ImageTooLarge: More than `MAX_PIXELS` pixels or `MAX_BYTES` bytes.
    """
    name = describe_source(source)
    try:
        if isinstance(source, np.ndarray):
            return _from_array(source)
        if isinstance(source, Image.Image):
            with _pillow_errors():
                _check_header(source)
                return _to_grey(source)
        return _decode(read_bytes(source), at_least)
    except ImageError as err:
        err.source = err.source or name
        raise


def describe_source(source: ImageSource) -> str:
    """Name a source in an error: by its path if it has one, else by its type and size."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"array of {source.dtype} {source.shape}"
    return str(getattr(source, "name", "") or getattr(source, "filename", "") or type(source).__name__)


def read_bytes(source: str | os.PathLike[str] | bytes | BinaryIO) -> bytes:
    """Read the undecoded bytes of a path, bytes or a binary file object; raises `ImageError` as the reader does."""
    if isinstance(source, bytes):
        data = source
    elif isinstance(source, str | os.PathLike):
        data = _read_file(Path(source))
    elif hasattr(source, "read"):
        data = _read_file_object(source)
    else:
        raise TypeError(f"a radiograph is a path, bytes, a file, an array or a PIL image, not {type(source).__name__}")
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"more than {MAX_BYTES // 2**20} MB", remedy="export it at a smaller size")
    if not data:
        raise ImageUnreadable("the file is empty", remedy="export it again")
    return data


def _read_file_object(file: BinaryIO) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as err:
        raise ImageUnreadable(f"cannot be read: {err}", remedy="open it anew, in binary mode") from err
    if not isinstance(data, bytes):
        raise TypeError("a radiograph's file object must be opened in binary mode")
    return data


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageUnreadable("this is a folder", remedy="name the files in it")
        if not stat.S_ISREG(status.st_mode):
            raise ImageUnreadable("not a regular file", remedy="copy it into one")  # opening a FIFO would wait for ever
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError as err:
        raise ImageUnreadable("no such file", remedy="check the path") from err
    except (OSError, ValueError) as err:
        reason = getattr(err, "strerror", None) or err
        raise ImageUnreadable(f"cannot be read: {reason}", remedy="check the path and its permissions") from err


def _decode(data: bytes, at_least: int | None) -> Image.Image:
    if is_dicom(data):
        image = decode_dicom(data, MAX_PIXELS)
        return image if image.mode == "L" else _colour_to_grey(image)
    with _pillow_errors(), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        _check_header(image)
        if at_least is not None and image.format == "JPEG":
            _draft(image, at_least)
        image.load()
        return _to_grey(image)


def _draft(image: Image.Image, at_least: int) -> None:
    width, height = image.size
    for scale in (8, 4, 2):
        # Otherwise the sides, or the offset in a centred square, are rounded: the radiograph moves by up to half a
        # pixel of the model's input, and its edges by up to 55 grey levels.
        exact = width % scale == height % scale == (width - height) % (2 * scale) == 0
        if exact and min(width, height) // scale >= at_least:
            image.draft(image.mode, (width // scale, height // scale))
            return


@contextmanager
def _pillow_errors() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as err:
        raise ImageUnsupported("not a PNG, JPEG, TIFF, BMP or DICOM image", remedy="convert it to PNG") from err
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageTooLarge(
            f"more than {MAX_PIXELS // 10**6} megapixels", remedy="export it at a smaller size"
        ) from err
    except MemoryError as err:
        raise ImageTooLarge("more than this machine's memory", remedy="export it at a smaller size") from err
    # Pillow's decoders raise all of these on damaged bytes.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
            OverflowError, ZeroDivisionError, NotImplementedError, RuntimeError, struct.error) as err:  # fmt: skip
        raise ImageUnreadable(f"truncated or damaged: {err}", remedy="export it again") from err


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(
            f"{width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels",
            remedy="export it at a smaller size",
        )
    # Before it is decoded: floating point takes four times the memory.
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise ImageUnsupported(f"pixels of type {image.mode!r}", remedy="export it as 8- or 16-bit grey PNG")
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageUnsupported(f"holds {frames} images", remedy="save the radiograph alone")
    # Pillow inverts such files at 1 and 8 bits and forgets to at 16. Asked here: a transposed copy has lost its tags.
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO:
        raise ImageUnsupported("16-bit TIFF with white as zero", remedy="export it as PNG")


def _to_grey(image: Image.Image) -> Image.Image:
    if min(image.size) < 1:
        raise ImageUnsupported("has no pixels", remedy="export it again")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:  # a copy each time, asked or not
        image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    if image.mode.startswith("I;16"):
        return _from_array(np.asarray(image.convert("I")).astype(np.uint16))
    return _colour_to_grey(image)


def _colour_to_grey(image: Image.Image) -> Image.Image:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
            raise ImageUnsupported("parts of it are transparent", remedy="export it without an alpha channel")
    image = image if image.mode == "RGB" else image.convert("RGB")
    red, green, blue = image.split()
    apart = [_largest(ImageChops.difference(green, other)) for other in (red, blue)]
    if sum(apart) <= _COLOUR_SPREAD:  # so no pixel strays further, and most grey images end here
        return image.convert("L")
    lightest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    darkest = ImageChops.darker(ImageChops.darker(red, green), blue)
    coloured = sum(ImageChops.difference(lightest, darkest).histogram()[_COLOUR_SPREAD + 1 :])
    if coloured > _COLOUR_SHARE * image.width * image.height:
        raise ImageUnsupported(
            "a colour image, not a grey radiograph", remedy="leave it out, or export the radiograph without colour"
        )
    return image.convert("L")


def _largest(image: Image.Image) -> int:
    return int(image.getextrema()[1])  # type: ignore[arg-type]


def _from_array(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> Image.Image:
    if pixels.ndim != 2 or pixels.size == 0:
        raise ImageUnsupported(f"an array of shape {pixels.shape}", remedy="pass one grey image (height, width)")
    if pixels.size > MAX_PIXELS:
        raise ImageTooLarge(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels, more than {MAX_PIXELS // 10**6} megapixels",
            remedy="scale it down",
        )
    if pixels.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(pixels))
    if pixels.dtype == np.uint16:
        if 0 < pixels.max() <= _UNSCALED_12_BIT:
            raise ImageUnsupported(
                f"16-bit samples that reach only {pixels.max()} of 65535, so their true depth is not known",
                remedy="scale them to the full range before saving",
            )
        # 65535 / 255 = 257: scaled and rounded, never clipped.
        return Image.fromarray(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8))
    raise ImageUnsupported(f"an array of {pixels.dtype}", remedy="pass uint8, or uint16 scaled to the full range")
