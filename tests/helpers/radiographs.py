"""Radiographs for the fake server, whose answer is the mean grey level / 255 and so belongs to one image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xray_client import Failure, Prediction

# Names that Linux can hold and that programs trip over: Latin-1, line breaks, quotes, commas, formulas, options.
UNUSUAL_NAMES = (
    b"M\xfcller.png",
    b"two\nlines.png",
    b"carriage\rreturn.png",
    b'"quoted", and more.png',
    b"=1+1.png",
    b"-rf.png",
    b" space .png",
    "\u80f8\u90e8 [1].png".encode(),
    b"\x1b[31mred.png",
)

_AROUND = np.array([0, -4, 4, -3, 3, -2, 2, -1, 1])


def grey(level: int, shape: tuple[int, int] = (224, 224)) -> npt.NDArray[np.uint8]:
    """Return a radiograph of one grey level but for the corner, since a flat one is refused.

    Its mean is the level, above 3 and below 252 exactly, and so is its first pixel.
    """
    image = np.full(shape, level, np.uint8)
    image[0, :9] = level + (np.arange(9) if level < 4 else -np.arange(9) if level > 251 else _AROUND)
    return image


def level_of(answer: Prediction | Failure) -> int:
    """Return the grey level that an answer belongs to."""
    assert isinstance(answer, Prediction), answer
    return round(answer.probability * 255)
