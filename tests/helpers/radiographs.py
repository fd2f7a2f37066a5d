"""Radiographs for the fake server, whose answer is the mean grey level / 255 and so belongs to one image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from xray_client import Failure, Prediction


def grey(level: int, shape: tuple[int, int] = (224, 224)) -> npt.NDArray[np.uint8]:
    """Return a radiograph of one grey level."""
    return np.full(shape, level, np.uint8)


def level_of(answer: Prediction | Failure) -> int:
    """Return the grey level that an answer belongs to."""
    assert isinstance(answer, Prediction), answer
    return round(answer.probability * 255)
