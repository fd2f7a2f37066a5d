"""Overlay of the heatmap on the radiograph: shows where in the image the evidence for Pneumonia lies.

The heatmap holds each patch's share of the log-odds, which depends on the number of patches. Multiplied by that number
it does not: it is the log-odds that the whole image would have if all of it looked like this patch.

The scale is absolute, never relative to the image's own maximum: full colour from `FULL_EVIDENCE` up, no colour at 0
and below. So a radiograph without evidence stays grey, and two overlays can be compared. Evidence against Pneumonia is
not painted.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from xray_client.contract import RESEARCH_USE
from xray_client.files import replacing

from .preprocessing import Preprocessing
from .reader import ImageSource, read_radiograph

# Log-odds of a patch that get the full colour. On real radiographs a diffuse pneumonia had about 4 in every patch, a
# focal one 15 in its own patches.
FULL_EVIDENCE = 15.0

_LONGEST_SIDE = 1024
_SHORTEST_LONG_SIDE = 512  # smaller images are enlarged: the caption must be readable
_NARROWEST = 480
# From violet over red and orange to yellow, each lighter than the one before: safe for colour-blind readers.
_COLOURS = ((0.0, (76, 32, 128)), (0.35, (190, 48, 88)), (0.7, (244, 128, 32)), (1.0, (255, 232, 96)))
_WHITE, _GREY, _WARNING = (235, 235, 235), (160, 160, 160), (255, 200, 64)


class Explained(Protocol):
    """Answer that an overlay can be drawn of: a `Prediction`, whose attributes these are."""

    @property
    def finding(self) -> str: ...
    @property
    def probability(self) -> float: ...
    @property
    def novelty(self) -> float: ...
    @property
    def novel(self) -> bool: ...
    @property
    def model(self) -> str: ...
    @property
    def model_version(self) -> str: ...
    @property
    def heatmap(self) -> npt.NDArray[np.float32] | None: ...
    @property
    def preprocessing(self) -> Preprocessing: ...


def render_overlay(
    radiograph: Image.Image,
    heatmap: npt.NDArray[np.float32],
    *,
    preprocessing: Preprocessing,
    opacity: float = 0.6,
) -> Image.Image:
    """Paint a heatmap over its radiograph.

    Args:
        radiograph: The grey image (mode "L") as `read_radiograph` gives it, before preprocessing.
        heatmap: `Prediction.heatmap`, float (h, w) over the preprocessed square.
        preprocessing: Preprocessing of the image; tells where in the square the radiograph lies.
        opacity: Opacity of full evidence, 0 to 1.

    Returns:
        An RGB image of the radiograph's size.

    Raises:
        ValueError: Not a grey image, not a heatmap (h, w) of finite numbers, or an opacity outside 0 to 1.
    """
    if radiograph.mode != "L":
        raise ValueError(f"the overlay takes a grey image of mode 'L', not {radiograph.mode!r}")
    evidence = _evidence(heatmap, radiograph.size, radiograph.size, preprocessing)
    return _paint(radiograph, evidence, opacity)


def write_overlay(path: str | os.PathLike[str], source: ImageSource, prediction: Explained) -> None:
    """Write the overlay as a PNG with a legend and the finding below; the long side is 512 to 1024 pixels.

    The picture does not show the file's name, which often names the patient. An existing file is replaced in one step.

    Args:
        path: The PNG to write.
        source: The classified image; it is read again, at full size.
        prediction: Its answer, a `Prediction` with a heatmap.

    Raises:
        ValueError: The prediction has no heatmap.
        ImageError: The source cannot be read.
        OSError: The file cannot be written.
    """
    if prediction.heatmap is None:
        raise ValueError("the prediction has no heatmap: classify with heatmap=True")
    radiograph = read_radiograph(source)
    longest = min(max(max(radiograph.size), _SHORTEST_LONG_SIDE), _LONGEST_SIDE)
    _, picture = side_by_side(radiograph, prediction, longest)
    with replacing(Path(path), durable=False) as unfinished:
        _with_caption(picture, prediction).save(unfinished, format="PNG")


def side_by_side(radiograph: Image.Image, prediction: Explained, longest: int) -> tuple[Image.Image, Image.Image]:
    """Scale a radiograph (mode "L") to a long side of `longest` pixels -> the plain image, and one with the heatmap."""
    scale = longest / max(radiograph.size)
    width, height = (max(1, round(side * scale)) for side in radiograph.size)
    plain = radiograph.resize((width, height), Image.Resampling.BICUBIC)
    if prediction.heatmap is None:
        return plain, plain.convert("RGB")
    evidence = _evidence(prediction.heatmap, radiograph.size, (width, height), prediction.preprocessing)
    return plain, _paint(plain, evidence, opacity=0.6)


def colour_at(share: float) -> tuple[int, int, int]:
    """Return the RGB colour of evidence, given as a share of `FULL_EVIDENCE`, 0 to 1."""
    red, green, blue = _palette()[3 * round(255 * share) :][:3]
    return red, green, blue


def _evidence(
    heatmap: npt.NDArray[np.float32], size: tuple[int, int], shown: tuple[int, int], preprocessing: Preprocessing
) -> npt.NDArray[np.float32]:
    """Upsample the heatmap of a radiograph of `size` -> shares of `FULL_EVIDENCE`, 0 to 1, at the size `shown`."""
    if heatmap.ndim != 2 or heatmap.size == 0 or not np.isfinite(heatmap).all():
        raise ValueError(f"a heatmap is (h, w) of finite numbers, not {heatmap.dtype} {heatmap.shape}")
    rows, columns = heatmap.shape
    left, top, right, bottom = 0.0, 0.0, 1.0, 1.0
    if preprocessing.geometry == "pad":
        width, height = size
        side = max(preprocessing.size, width, height)
        left, top = (side - width) // 2 / side, (side - height) // 2 / side
        right, bottom = left + width / side, top + height / side
    box = (left * columns, top * rows, min(right, 1.0) * columns, min(bottom, 1.0) * rows)
    per_image = Image.fromarray(np.ascontiguousarray(heatmap, dtype=np.float32) * heatmap.size)
    spread = np.asarray(per_image.resize(shown, Image.Resampling.BICUBIC, box=box))
    return np.clip(spread / np.float32(FULL_EVIDENCE), 0, 1)


def _paint(radiograph: Image.Image, evidence: npt.NDArray[np.float32], opacity: float) -> Image.Image:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity {opacity!r} is not from 0 to 1")
    colours = Image.fromarray(np.rint(evidence * 255).astype(np.uint8))
    colours.putpalette(_palette())
    mask = Image.fromarray(np.rint(evidence * (255 * opacity)).astype(np.uint8))
    return Image.composite(colours.convert("RGB"), radiograph.convert("RGB"), mask)


def _palette() -> bytes:
    steps = np.linspace(0, 1, 256)
    at = [position for position, _ in _COLOURS]
    channels = [np.interp(steps, at, [colour[channel] for _, colour in _COLOURS]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8).tobytes()


def _with_caption(picture: Image.Image, prediction: Explained) -> Image.Image:
    width = max(picture.width, _NARROWEST)
    margin = 12
    small, large = ImageFont.load_default(14), ImageFont.load_default(20)
    novelty = f"novelty {prediction.novelty:.2f}"
    lines = [
        (f"{prediction.finding}, probability of Pneumonia {prediction.probability:.3f}", large, _WHITE),
        (f"{novelty}: unlike the training radiographs, do not rely on this answer", small, _WARNING)
        if prediction.novel
        else (novelty, small, _GREY),
        (f"{prediction.model} version {prediction.model_version}", small, _GREY),
        (RESEARCH_USE, small, _WHITE),
    ]
    strip = 118 + 2 * margin
    canvas = Image.new("RGB", (width, picture.height + strip), (0, 0, 0))
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    y = picture.height + margin
    bar = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (10, 1)))
    bar.putpalette(_palette())
    draw.text((margin, y), "evidence for Pneumonia, log-odds: 0", font=small, fill=_GREY)
    x = margin + round(draw.textlength("evidence for Pneumonia, log-odds: 0", font=small)) + 8
    canvas.paste(bar.convert("RGB").resize((120, 10)), (x, y + 4))
    draw.text((x + 128, y), f"{FULL_EVIDENCE:g} or more", font=small, fill=_GREY)
    y += 26
    for text, font, colour in lines:
        draw.text((margin, y), text, font=font, fill=colour)
        y += round(1.35 * font.size) + 2 if isinstance(font, ImageFont.FreeTypeFont) else 20
    return canvas
