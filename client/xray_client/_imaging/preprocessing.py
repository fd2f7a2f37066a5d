"""Preprocessing for training, client and server alike: grey image -> uint8 [1, size, size].

It is data: a `Preprocessing` is saved with each checkpoint, written into the served model's parameters and read by the
client, so that every radiograph is prepared as in training.

The versions differ in one thing, how far a JPEG may be shrunk while it is decoded, which costs half as much or less:

1: only where the sides divide evenly and stay four times the input's or more. MedCLIP's own preprocessing within 3 grey
   levels, and the only one for models that were trained with it.
2: wherever twice the input's side is left. On sixteen full-size radiographs 99.9 % of the pixels are within 2 grey
   levels of the full decoding, and the others, mostly at the edges of lead markers, within 13; the reference model's
   probability moves by 0.0005 at most, an eighth of what saving them anew as JPEG of quality 90 moves it by.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import PreprocessingMismatch
from xray_client.parsing import parse_json

# Incremented whenever the same settings would give other pixels than before. A new model is trained with the last.
PREPROCESSING_VERSION = 2
_VERSIONS = (1, 2)
# Version 2: how many times the input's side a picture keeps when it is decoded at a fraction of its size.
_KEPT = 2
# Pixels of the input that bicubic interpolation looks at to either side.
_REACH = 2

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
        version: 1 or 2; another version cannot be reproduced and is refused.

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
        if isinstance(self.version, bool) or self.version not in _VERSIONS:
            raise PreprocessingMismatch(
                f"preprocessing version {self.version!r}, this package has {' and '.join(map(str, _VERSIONS))}",
                remedy="install the medclip-triton release that the model was built with",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the model's input, (1, size, size)."""
        return (1, self.size, self.size)

    def fraction(self, width: int, height: int) -> int:
        """Compute at which part of its size a JPEG of this size may be decoded for `apply`.

        Returns:
            1, 2, 4 or 8: the whole, a half, a quarter or an eighth.
        """
        return next((part for part in (8, 4, 2) if self._allows(part, width, height)), 1)

    def _allows(self, part: int, width: int, height: int) -> bool:
        if self.version == 1:
            # Otherwise the sides, or the offset in a centred square, are rounded: the radiograph moves by up to half a
            # pixel of the model's input, and its edges by up to 55 grey levels.
            exact = width % part == height % part == (width - height) % (2 * part) == 0
            return exact and min(width, height) >= 4 * self.size * part
        if self.geometry == "stretch":
            return min(width, height) >= _KEPT * self.size * part
        side, offset = max(width, height), abs(width - height) // 2
        # Where the square's edge lies within a decoded pixel, that pixel counts whole: far from the radiograph only.
        exact = width == height or side % part == offset % part == 0 or offset >= _REACH * side / self.size
        return exact and side >= _KEPT * self.size * part

    def apply(self, radiograph: Image.Image, *, full_size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """Prepare one grey image.

        Args:
            radiograph: Grey image (mode "L") of any size.
            full_size: Width and height, pixels, that it has in its file; None, or its own size, if it was decoded
                whole and not at `fraction` of it.

        Returns:
            uint8 (1, size, size).
        """
        if radiograph.mode != "L":
            raise ValueError(f"preprocessing takes a grey image of mode 'L', not {radiograph.mode!r}")
        if self.version > 1 and full_size not in (None, radiograph.size):
            return np.asarray(self._scale_decoded(radiograph, full_size), dtype=np.uint8)[None]
        if self.geometry == "pad":
            if radiograph.height < radiograph.width and radiograph.width > self.size:
                radiograph = self._shrink_rows(radiograph)
            else:
                radiograph = _pad_to_square(radiograph, at_least=self.size)
        if radiograph.size != (self.size, self.size):
            radiograph = self._resize(radiograph, (self.size, self.size))
        return np.asarray(radiograph, dtype=np.uint8)[None]

    def _resize(
        self, image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
    ) -> Image.Image:
        return image.resize(size, _INTERPOLATIONS[self.interpolation], box=box)

    def _scale_decoded(self, radiograph: Image.Image, full_size: tuple[int, int]) -> Image.Image:
        """Scale a picture decoded at `fraction` of its size as the whole one would be, moved by no part of a pixel.

        A side that does not divide evenly ends within the last decoded pixel, and the centred square begins within one.
        """
        part = self.fraction(*full_size)
        width, height = (length / part for length in full_size)
        if self.geometry == "stretch":
            return self._resize(radiograph, (self.size, self.size), (0, 0, width, height))
        if width < height:  # its own mirror image
            turned = radiograph.transpose(Image.Transpose.TRANSPOSE)
            return self._scale_decoded(turned, full_size[::-1]).transpose(Image.Transpose.TRANSPOSE)
        narrow = self._resize(radiograph, (self.size, radiograph.height), (0, 0, width, radiograph.height))
        if height < radiograph.height:  # its last row is black in part, as that of the square would be
            row = (0, radiograph.height - 1, self.size, radiograph.height)
            narrow.paste(narrow.crop(row).point([round(grey * (height % 1)) for grey in range(256)]), row)
        offset = (full_size[0] - full_size[1]) // 2 / part
        top = math.ceil(offset) - offset
        square = Image.new("L", (self.size, math.ceil(top + width)), 0)
        square.paste(narrow, (0, math.ceil(offset)))
        return self._resize(square, (self.size, self.size), (0, top, self.size, top + width))

    def _shrink_rows(self, radiograph: Image.Image) -> Image.Image:
        """Pad a wide image to its square and scale it across, (size, width): the same pixels in less time.

        Pillow scales across first, then down, with 8 bits in between: the black rows need not be scaled across.
        """
        width, height = radiograph.size
        narrow = self._resize(radiograph, (self.size, height))
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
            values: Any = parse_json(text)
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
