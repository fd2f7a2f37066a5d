"""MedCLIP's own reading of a radiograph, for comparison: Pillow decodes the whole file, a black square, bicubic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

SIZE = 224


def read_as_medclip(path: Path) -> npt.NDArray[np.uint8]:
    """Read a file as MedCLIP's preprocessing does: grey, padded to a centred square, resized. uint8 (224, 224)."""
    with Image.open(path) as opened:
        grey = opened.convert("L")
    side = max(SIZE, *grey.size)
    square = Image.new("L", (side, side), 0)
    square.paste(grey, ((side - grey.width) // 2, (side - grey.height) // 2))
    return np.array(square.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
