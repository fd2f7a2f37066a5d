"""Image reader: a radiograph in PNG, JPEG, TIFF, BMP or DICOM -> one grey 8-bit image.

The bytes decide the format, not the file's name. An image that is not fully understood is refused with the reason,
never guessed: a wrong picture gives a confident wrong answer.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageOps

from xray_client._exceptions import ImageError, ImageTooLarge, ImageUnavailable, ImageUnreadable, ImageUnsupported

from .depth import check_depth, check_levels, to_8_bits
from .dicom import decode_dicom, is_dicom
from .formats import open_image, pillow_by_our_rules
from .jpeg import decode_jpeg
from .preprocessing import Preprocessing
from .quiet import quietly

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | BinaryIO | npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | Image.Image"
)

# From the width and height of a JPEG, the part of its size at which it may be decoded: 1, 2, 4 or 8.
Fraction: TypeAlias = Callable[[int, int], int]

MAX_PIXELS = 64_000_000  # four times the largest flat-panel detectors; decodes to 64 MB of grey
MAX_BYTES = 256 * 2**20

_MODES = ("1", "L", "LA", "PA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
# A grey image saved as colour JPEG strays by a few levels; a colour photograph by dozens.
_COLOUR_SPREAD = 24
_COLOUR_SHARE = 0.01
_EXIF_ORIENTATION = 274
_TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 262, 0
_TIFF_HIGHEST = 341  # SMaxSampleValue


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
    return load_within(source, preprocessing, MAX_PIXELS)


def load_within(source: ImageSource, preprocessing: Preprocessing, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Read and preprocess one radiograph of limited size; as `load_radiograph` for all else.

    Args:
        source: As there.
        preprocessing: As there.
        max_pixels: Largest number of pixels; a tenth of that of a JPEG with all of its scans.

    Raises:
        ImageTooLarge: More than that, found before anything is decoded.
    """
    radiograph, full_size = _read(source, preprocessing.fraction, max_pixels)
    return preprocessing.apply(radiograph, full_size=full_size)


def read_radiograph(source: ImageSource, *, at_least: int | None = None) -> Image.Image:
    """Read one radiograph as a grey 8-bit image (mode "L").

    Args:
        source: Path, bytes, binary file object, grey uint8 or uint16 array (h, w), or PIL image.
        at_least: Smallest side, pixels, to which a JPEG may be decoded at a half, quarter or eighth of its size, as for
            a thumbnail; None = full size.

    Raises:
        ImageUnavailable: The operating system did not give the file: missing, no permission, busy.
        ImageUnreadable: Empty, truncated, damaged, or not a regular file.
        ImageUnsupported: Another format, colour, several frames, transparency, floating point.
        ImageTooLarge: More than `MAX_PIXELS` pixels or `MAX_BYTES` bytes.
    """

    def fraction(width: int, height: int) -> int:
        smaller = (part for part in (8, 4, 2) if at_least is not None and min(width, height) // part >= at_least)
        return next(smaller, 1)

    return _read(source, fraction)[0]


def _read(source: ImageSource, fraction: Fraction, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, tuple[int, int]]:
    """Read one radiograph, and the width and height that it has in the file."""
    name = describe_source(source)
    try:
        if isinstance(source, np.ndarray):
            image = _from_array(source)
            full_size = image.size
        elif isinstance(source, Image.Image):
            with quietly(), pillow_by_our_rules(), _pillow_errors():
                _check_header(source, max_pixels)
                image = _to_grey(source)
            full_size = image.size
        else:
            image, full_size = _decode(read_bytes(source), fraction, max_pixels)
        check_levels(image)
        return image, full_size
    except MemoryError as err:
        raise ImageTooLarge("more than there is memory for", remedy="export it at a smaller size", source=name) from err
    except ImageError as err:
        err.source = err.source or name
        if not isinstance(err, ImageUnavailable):  # a library's error may quote what the file says of the patient
            err.__cause__ = err.__context__ = None
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
    except OSError as err:
        raise ImageUnavailable(f"cannot be read: {err.strerror or err}", remedy="open it anew") from err
    except ValueError as err:
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
        raise ImageUnavailable("no such file", remedy="check the path") from err
    except OSError as err:
        reason = err.strerror or err
        raise ImageUnavailable(f"cannot be read: {reason}", remedy="check the path and its permissions") from err
    except ValueError as err:  # a zero byte in the path
        raise ImageUnreadable(f"cannot be read: {err}", remedy="check the path") from err


def _decode(data: bytes, fraction: Fraction, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    if is_dicom(data):
        image = decode_dicom(data, max_pixels)
        grey = image if image.mode == "L" else _colour_to_grey(image)
        return grey, grey.size
    with quietly(), pillow_by_our_rules(), _pillow_errors(), open_image(data) as image:
        _check_header(image, max_pixels)
        if image.format != "JPEG":
            grey = _to_grey(image, _significant_bits(data))
            return grey, grey.size
        # The part of a pixel that a side ends in would lie at its start once it is turned.
        upright = image.getexif().get(_EXIF_ORIENTATION, 1) == 1
        full_size, part = image.size, fraction(*image.size) if upright else 1
        grey = _to_grey(decode_jpeg(data, image, part, max_pixels))
        return grey, full_size if part > 1 else grey.size


def _significant_bits(data: bytes) -> int | None:
    """Read the depth of the samples that a grey PNG names in its chunk sBIT; None where it names none."""
    if not data.startswith(b"\x89PNG"):
        return None
    place = data.find(b"\0\0\0\x01sBIT", 0, max(0, data.find(b"IDAT")))
    return data[place + 8] if place > 0 and 8 <= data[place + 8] <= 16 else None


@contextmanager
def _pillow_errors() -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as err:
        raise ImageTooLarge(
            f"more than {MAX_PIXELS // 10**6} megapixels", remedy="export it at a smaller size"
        ) from err
    # Pillow's decoders raise all of these on damaged bytes.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
            OverflowError, ZeroDivisionError, NotImplementedError, RuntimeError, struct.error) as err:  # fmt: skip
        raise ImageUnreadable("truncated or damaged", remedy="export it again") from err


def _check_header(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLarge(
            f"{width} x {height} pixels, more than {max_pixels // 10**6} megapixels",
            remedy="export it at a smaller size",
        )
    # Before it is decoded: floating point takes four times the memory.
    if image.mode not in _MODES and not image.mode.startswith("I;16"):
        raise ImageUnsupported(f"pixels of type {image.mode!r}", remedy="export it as 8- or 16-bit grey PNG")
    if not image.mode.startswith("I;16") and _of_16_bits(image):
        raise ImageUnsupported(
            "colour or transparency with a depth of 16 bits, which would be cut to 8", remedy="export it as grey PNG"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise ImageUnsupported(f"holds {frames} images", remedy="save the radiograph alone")
    # Pillow inverts such files at 1 and 8 bits and forgets to at 16. Asked here: a transposed copy has lost its tags.
    if image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO:
        raise ImageUnsupported("16-bit TIFF with white as zero", remedy="export it as PNG")


def _of_16_bits(image: Image.Image) -> bool:
    """Tell if Pillow would drop the lower byte of the samples."""
    for tile in getattr(image, "tile", ()):
        raw = tile[3] if isinstance(tile[3], str) else tile[3][0] if tile[3] else ""
        if isinstance(raw, str) and ";16" in raw:
            return True
    return False


def _to_grey(image: Image.Image, bits: int | None = None) -> Image.Image:
    white = getattr(image, "tag_v2", {}).get(_TIFF_HIGHEST)
    if min(image.size) < 1:
        raise ImageUnsupported("has no pixels", remedy="export it again")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:  # a copy each time, asked or not
        image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    if image.mode.startswith("I;16"):
        samples = np.asarray(image.convert("I")).astype(np.uint16)
        return _from_array(samples, _white_of(samples, bits, white))
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


def _white_of(samples: npt.NDArray[np.uint16], bits: int | None, highest: Any) -> int | None:
    """Return the sample that is white by what the file says: SMaxSampleValue of TIFF, or sBIT of PNG; None = nothing.

    PNG wants samples scaled to 16 bits, whatever sBIT says; only where none reaches beyond those bits were they not.
    """
    if isinstance(highest, tuple):
        highest = highest[0] if len(highest) == 1 else None
    if isinstance(highest, int) and 255 <= highest < 65535 and samples.max() <= highest:
        return highest
    return 2**bits - 1 if bits is not None and bits < 16 and samples.max() < 2**bits else None


def _from_array(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], white: int | None = None) -> Image.Image:
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
        if white is None:
            check_depth(pixels, 16)
        return Image.fromarray(to_8_bits(pixels, white or 65535))
    raise ImageUnsupported(f"an array of {pixels.dtype}", remedy="pass uint8, or uint16 scaled to the full range")
