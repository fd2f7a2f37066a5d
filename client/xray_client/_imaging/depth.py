"""Depth of grey samples: which value is white, and what the samples are on 8 bits.

A file of 16 bits may hold the samples of a 10-, 12- or 14-bit detector. Nothing then says which value is white; shown
as they are, they come out 4 to 64 times too dark. Such a picture is refused, never stretched: a stretch would brighten
a picture that is truly dark.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import ImageUnsupported

# A radiograph on the full scale has far more above a quarter of white; 12 bits in 16, or 14 in 16, have none but a
# bright marker or a dead pixel.
_BRIGHT_SHARE = 0.01
# Samples that are all multiples of 4 or more were shifted to the top of their container, or scaled to it.
_SCALED_STEP = 4
_FEWEST_LEVELS = 8
# A look at so many pixels shows the levels of nearly every picture; only where it does not are all of them counted.
_LOOK = 4096


def check_depth(
    samples: npt.NDArray[np.unsignedinteger[Any]],
    bits: int,
    *,
    kind: str = "",
    remedy: str = "scale them to the full range before saving",
) -> None:
    """Refuse samples that leave the upper part of their depth empty.

    Args:
        samples: Stored values, unsigned, any shape, 0 = one end of the grey scale, 2**bits - 1 = the other.
        bits: Depth that the header or the container gives, 1 to 16. Samples of up to 8 bits always pass.
        kind: Prefix of the message, such as "DICOM: ".
        remedy: Remedy of the error.

    Raises:
        ImageUnsupported: Fewer than 1 % of the samples reach 2**(bits - 2), and they are not multiples of a number that
            shows them to be shifted or scaled to the full depth.
    """
    if bits <= 8 or samples.size == 0:
        return
    quarter = 1 << (bits - 2)
    bright = int(np.count_nonzero(samples >= quarter))
    if bright >= _BRIGHT_SHARE * samples.size:
        return
    present = _levels(samples)
    highest = int(present[-1])
    if highest == 0 or _is_full_depth(int(np.gcd.reduce(present)), highest, bits):
        return
    if bright:  # named by where nearly all of them end: the few above are a marker or a dead pixel
        highest = int(np.partition(samples, -bright - 1, axis=None)[-bright - 1])
    share = "of which 99 % reach" if bright else "that reach"
    raise ImageUnsupported(
        f"{kind}{bits}-bit samples {share} only {highest} of {2**bits - 1}, so their true depth is not known",
        remedy=remedy,
    )


def _levels(samples: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.intp]:
    """Sorted distinct values, in one pass instead of a sort."""
    present = np.zeros(65536, dtype=bool)
    present[samples] = True
    return np.flatnonzero(present)


def _is_full_depth(step: int, highest: int, bits: int) -> bool:
    if step < _SCALED_STEP:
        return False
    if step >= 1 << (bits - 8):  # an 8-bit picture, and those stay as they are
        return True
    # 8 bits shifted to 12 and stored in 16 are multiples of 16 as well. Their white is 255 steps, all bits set: by
    # chance a dark picture of 12 bits shifted to 16 ends there once in 256 times.
    steps = highest // step + 1
    return steps & (steps - 1) != 0


def to_8_bits(samples: npt.NDArray[np.unsignedinteger[Any]], white: int, black: int = 0) -> npt.NDArray[np.uint8]:
    """Scale samples to 0..255 and round; values beyond `black` and `white` become those.

    Args:
        samples: uint8 or uint16, any shape.
        white: Value that becomes 255, above `black`, at most 65535.
        black: Value that becomes 0.

    Returns:
        uint8 of the same shape.
    """
    if black != 0 or white != 65535 or samples.dtype != np.dtype(np.uint16):
        return np.asarray(_table(black, white)[samples])
    # 65535 / 255 = 257. Quicker than a table of 64 KB.
    return ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)


@functools.lru_cache(maxsize=8)
def _table(black: int, white: int) -> npt.NDArray[np.uint8]:
    values = np.clip(np.arange(65536, dtype=np.int64), black, white) - black
    span = white - black
    return ((values * 510 + span) // (2 * span)).astype(np.uint8)


def check_levels(image: Image.Image) -> None:
    """Refuse a picture (mode "L") of fewer than 8 grey levels: blank, or its scale was misread.

    Raises:
        ImageUnsupported: Fewer than 8 distinct grey levels.
    """
    width, height = image.size
    step = max(1, int((width * height / _LOOK) ** 0.5))
    look = image.resize((max(1, width // step), max(1, height // step)), Image.Resampling.NEAREST)
    if _count(look) >= _FEWEST_LEVELS:
        return
    levels = _count(image)
    if levels < _FEWEST_LEVELS:
        raise ImageUnsupported(
            f"the picture is flat: {levels} grey level{'s' * (levels != 1)}",
            remedy="look at the file in a viewer, and export it with its grey scale",
        )


def _count(image: Image.Image) -> int:
    return sum(count > 0 for count in image.histogram())
