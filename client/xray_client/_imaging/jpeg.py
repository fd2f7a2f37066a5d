"""JPEG decoder that takes libjpeg's warnings for what they are: pixels that are not those of the radiograph.

Pillow fills what is missing of a damaged file with grey, without a word. simplejpeg runs the same libjpeg-turbo, raises
where it warns ("premature end", "corrupt data"), and gives the same pixels otherwise.
"""

from __future__ import annotations

import simplejpeg
from PIL import Image

from xray_client._exceptions import ImageTooLarge, ImageUnreadable, ImageUnsupported

# An encoder makes six to ten scans, and each is decoded over the whole image: 3,000 of them take half a minute.
MAX_SCANS = 100
_SCANS_OF_LARGEST = 10
_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}


def check_intact(stream: bytes) -> None:
    """Decode a JPEG of 8 bits at an eighth of its size, to hear the decoder's warnings.

    Args:
        stream: A JPEG as a DICOM file holds it; the codecs for DICOM show a damaged one without a word.

    Raises:
        ImageUnreadable: libjpeg fails, or warns.
    """
    damage = ""
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(stream, strict=True)
        space = "GRAY" if space == "Gray" else "RGB"
        simplejpeg.decode_jpeg(stream, colorspace=space, min_height=height // 8, min_width=width // 8, strict=True)
    except ValueError as err:
        damage = str(err)
    if damage:
        raise ImageUnreadable(f"truncated or damaged: {damage}", remedy="export it again")


def decode_jpeg(data: bytes, header: Image.Image, part: int, max_pixels: int) -> Image.Image:
    """Decode a JPEG at 1 / `part` of its size; sides are rounded up.

    Args:
        data: The whole file.
        header: The same file as Pillow opened it, not loaded.
        part: 1, 2, 4 or 8.
        max_pixels: Largest number of pixels; a tenth of the largest number of those in all scans together.

    Returns:
        Image of the header's mode, with its `info`, so that EXIF's orientation is known.

    Raises:
        ImageTooLarge: More pixels in all scans together.
        ImageUnsupported: More than 100 scans, or another kind of colour than grey, RGB and CMYK.
        ImageUnreadable: libjpeg fails, or warns.
    """
    # Within a scan this pair of bytes does not occur; a thumbnail in the header has a few.
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS:
        raise ImageUnsupported(f"a JPEG of more than {MAX_SCANS} scans", remedy="save it anew as plain JPEG or PNG")
    if scans * header.width * header.height > _SCANS_OF_LARGEST * max_pixels:
        raise ImageTooLarge(
            f"a JPEG of {header.width} x {header.height} pixels in {scans} scans",
            remedy="save it anew as plain JPEG or PNG",
        )
    space = _SPACES.get(header.mode)
    if space is None:
        raise ImageUnsupported(f"a JPEG of mode {header.mode}", remedy="export it as grey JPEG or PNG")
    width, height = (-(-side // part) for side in header.size)
    damage = ""
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=space, min_height=height, min_width=width, strict=True)
    except ValueError as err:
        damage = str(err)
    if damage:
        raise ImageUnreadable(f"truncated or damaged: {damage}", remedy="export it again")
    if space == "CMYK":  # whether its inks are inverted is for Pillow to know, from the Adobe marker
        header.draft(header.mode, (header.size[0] // part, header.size[1] // part))
        header.load()
        return header
    decoded = Image.fromarray(pixels[..., 0] if space == "GRAY" else pixels)
    decoded.info = dict(header.info)
    return decoded
