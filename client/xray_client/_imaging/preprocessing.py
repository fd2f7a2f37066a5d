"""Preprocessing for training, client and server alike: grey image -> uint8 [1, size, size].

It is data: a `Preprocessing` is saved with each checkpoint, written into the served model's parameters and read by the
client, so that every radiograph is prepared as in training.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import PreprocessingMismatch

# Incremented whenever the same settings would give other pixels than before.
PREPROCESSING_VERSION = 1

GEOMETRIES = ("pad", "stretch")
_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Settings that turn a grey radiograph into the model's input.

    Args:
        size: Side of the square input, pixels.
        geometry: "pad" centres the radiograph on a black square of side max(size, width, height) and scales that,
            as MedCLIP does; "stretch" scales to the square and gives up the aspect ratio.
        interpolation: "bicubic".
        version: Version of this code; another version cannot be reproduced and is refused.

    Raises:
        PreprocessingMismatch: A value that this version of the package cannot reproduce.
    """

    size: int = 224
    geometry: str = "pad"
    interpolation: str = "bicubic"
    version: int = PREPROCESSING_VERSION

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= 4096:
            raise PreprocessingMismatch(f"preprocessing size {self.size!r} is not a number of pixels from 1 to 4096")
        if self.geometry not in GEOMETRIES:
            raise PreprocessingMismatch(f"preprocessing geometry {self.geometry!r} is none of {', '.join(GEOMETRIES)}")
        if self.interpolation not in _INTERPOLATIONS:
            raise PreprocessingMismatch(f"preprocessing interpolation {self.interpolation!r} is not known here")
        if self.version != PREPROCESSING_VERSION:
            raise PreprocessingMismatch(
                f"preprocessing version {self.version!r}, this package has version {PREPROCESSING_VERSION}",
                remedy="install the medclip-triton release that the model was built with",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the model's input, (1, size, size)."""
        return (1, self.size, self.size)

    def apply(self, radiograph: Image.Image) -> npt.NDArray[np.uint8]:
        """Prepare one grey image (mode "L", any size) -> uint8 (1, size, size)."""
        if radiograph.mode != "L":
            raise ValueError(f"preprocessing takes a grey image of mode 'L', not {radiograph.mode!r}")
        if self.geometry == "pad":
            if radiograph.height < radiograph.width and radiograph.width > self.size:
                radiograph = self._shrink_rows(radiograph)
            else:
                radiograph = _pad_to_square(radiograph, at_least=self.size)
        if radiograph.size != (self.size, self.size):
            radiograph = radiograph.resize((self.size, self.size), _INTERPOLATIONS[self.interpolation])
        return np.asarray(radiograph, dtype=np.uint8)[None]

    def _shrink_rows(self, radiograph: Image.Image) -> Image.Image:
        """Pad a wide image to its square and scale it across, (size, width): the same pixels in less time.

        Pillow scales across first, then down, with 8 bits in between: the black rows need not be scaled across.
        """
        width, height = radiograph.size
        narrow = radiograph.resize((self.size, height), _INTERPOLATIONS[self.interpolation])
        square = Image.new("L", (self.size, width), 0)
        square.paste(narrow, (0, (width - height) // 2))
        return square

    def to_json(self) -> str:
        """Convert to one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Parse `to_json`; an unknown key or value raises `PreprocessingMismatch`."""
        try:
            values: Any = json.loads(text)
            return cls(**values)
        except (TypeError, ValueError) as err:
            raise PreprocessingMismatch(
                f"preprocessing record {text[:200]!r} is not understood",
                remedy="install the medclip-triton release that the model was built with",
            ) from err


def _pad_to_square(radiograph: Image.Image, *, at_least: int) -> Image.Image:
    width, height = radiograph.size
    side = max(at_least, width, height)
    if (width, height) == (side, side):
        return radiograph
    square = Image.new("L", (side, side), 0)
    square.paste(radiograph, ((side - width) // 2, (side - height) // 2))
    return square
