"""Pictures whose answer is known before a server is asked, and versions that answer them differently."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client import Preprocessing, load_radiograph

# A heatmap is at most 0.5; the last digits depend on the batch. Versions differ by a hundred times as much.
TOLERANCE = 1e-5

Heatmap = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Picture:
    """A file to send.

    Attributes:
        name: Its name in a report.
        data: Its bytes.
        heatmap: The graph's heatmap at temperature 1; None = the file must be refused.
    """

    name: str
    data: bytes
    heatmap: Heatmap | None

    @classmethod
    def answerable(cls, name: str, data: bytes) -> Picture:
        """Make a picture of a file that must be answered, with the heatmap that numpy computes."""
        prepared = load_radiograph(data, Preprocessing())
        patches = (prepared / 255.0 - 0.5).reshape(7, 32, 7, 32).mean(axis=(1, 3))
        return cls(name, data, patches.astype(np.float32))

    def matches(self, heatmap: Heatmap | None, temperature: float) -> bool:
        """Tell whether a heatmap is the answer to this picture by the version of that temperature."""
        if self.heatmap is None or heatmap is None:
            return False
        return bool(np.abs(heatmap - self.heatmap / temperature).max() < TOLERANCE)


def drawn(count: int = 12) -> list[Picture]:
    """Draw pictures of different sizes, shapes and formats, no two alike."""
    pictures = []
    for seed in range(count):
        values = np.random.default_rng(seed).integers(0, 256, (5 + seed % 3, 4 + seed % 4), dtype=np.uint8)
        size = (300 + 40 * seed, 500 - 10 * seed)
        data = io.BytesIO()
        kind = ("PNG", "JPEG")[seed % 2]
        Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).save(data, kind)
        pictures.append(Picture.answerable(f"drawn {seed}.{kind.lower()}", data.getvalue()))
    return pictures


def damaged(pictures: Sequence[Picture]) -> list[Picture]:
    """Make files that must be refused."""
    bad = {"text": b"<html>404</html>", "empty": b"", "truncated": pictures[0].data[: len(pictures[0].data) // 3]}
    return [Picture(name, data, None) for name, data in bad.items()]
