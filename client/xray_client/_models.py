"""What the client answers: a `Prediction` for a radiograph that was read, a `Failure` for one that was not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource, read_radiograph

from ._card import ModelCard
from ._exceptions import XrayError
from .contract import NOVELTY_LIMIT


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one call went, milliseconds; both count again where an image had to be sent again.

    Attributes:
        prepare_ms: Reading, decoding and scaling the image on this machine.
        server_ms: The request's round trip: network, queue and model, and the pauses between attempts.
        attempts: How often the image was sent; 1 unless something went wrong on the way.
    """

    prepare_ms: float
    server_ms: float
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer for one radiograph.

    Attributes:
        file: Path of the file; None for an image that came from memory.
        finding: "Normal", "Pneumonia" or "Uncertain": the decision in words.
        probability: Calibrated probability of Pneumonia, 0 to 1.
        decision: Index of the finding in `FINDINGS`, taken at the model's operating point, not at 0.5.
        novelty: Distance from the training radiographs; above `NOVELTY_LIMIT`, believe nothing else in this answer.
        heatmap: Each image patch's share of the log-odds of Pneumonia, float32 (h, w), read-only; None if not asked.
        model: Name of the served model.
        model_version: The version that answered.
        milliseconds: The whole call, from reading the file to the checked answer.
        timing: Where that time went.
        preprocessing: How the image was prepared; places the heatmap on the radiograph.
        request_id: The request's id, as the server's log has it; random, and tells nothing of the image.
    """

    file: str | None
    finding: str
    probability: float
    decision: int
    novelty: float
    heatmap: npt.NDArray[np.float32] | None = field(repr=False, compare=False)
    model: str
    model_version: str
    milliseconds: float
    timing: Timing
    preprocessing: Preprocessing = field(repr=False)
    request_id: str = field(default="", repr=False, compare=False)

    @property
    def novel(self) -> bool:
        """True where the image is unlike the radiographs that the model was trained on."""
        return self.novelty > NOVELTY_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """One row of a table or one line of JSON; the same keys as `Failure.to_dict`."""
        return {
            "file": self.file,
            "finding": self.finding,
            "probability": self.probability,
            "decision": self.decision,
            "novelty": self.novelty,
            "model": self.model,
            "version": self.model_version,
            "milliseconds": round(self.milliseconds, 3),
            "error": None,
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    def overlay(self, source: ImageSource, *, opacity: float = 0.6) -> Image.Image:
        """The heatmap painted over the radiograph at its own size: see `render_overlay`.

        Args:
            source: The image that was classified; read again, at full size.
            opacity: Opacity of full evidence, 0 to 1.

        Returns:
            An RGB image of the radiograph's size.

        Raises:
            ValueError: The prediction was made without a heatmap.
            ImageError: The source cannot be read.
        """
        from xray_client._imaging.overlay import render_overlay

        if self.heatmap is None:
            raise ValueError("the prediction has no heatmap: classify with heatmap=True")
        radiograph = read_radiograph(source)
        return render_overlay(radiograph, self.heatmap, preprocessing=self.preprocessing, opacity=opacity)

    def __str__(self) -> str:
        unlike = ", unlike the training radiographs" if self.novel else ""
        origin = f"{self.model} version {self.model_version}, {self.milliseconds:.1f} ms"
        return (
            f"{self.file or 'image'}: {self.finding}, probability of Pneumonia {self.probability:.3f}, "
            f"novelty {self.novelty:.2f}{unlike} ({origin})"
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """What `classify_many` answers in place of a `Prediction` where there is none.

    Attributes:
        file: Path of the file; None for an image that came from memory.
        error: Why: an `ImageError` for the file, a `ServerError` or `ProtocolMismatch` for the server.
        model: Name of the model that was asked.
        milliseconds: How long it took to fail.
    """

    file: str | None
    error: XrayError
    model: str
    milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """One row of a table or one line of JSON; the same keys as `Prediction.to_dict`."""
        return {
            "file": self.file,
            "finding": None,
            "probability": None,
            "decision": None,
            "novelty": None,
            "model": self.model,
            "version": None,
            "milliseconds": round(self.milliseconds, 3),
            "error": f"{type(self.error).__name__}: {self.reason}",
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict())

    @property
    def reason(self) -> str:
        """What happened and what to do about it, in words; names the server but not once more the file."""
        return str(self.error).removeprefix(f"{self.file}: ")

    def __str__(self) -> str:
        return f"{self.file or 'image'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of the served model; -1 in the shape is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a server says of the model.

    Attributes:
        model: Name of the model.
        versions: Versions that can be asked for.
        platform: Triton's name of the engine that runs it.
        server: Name and version of the server.
        preprocessing: How its images are prepared.
        inputs: Its inputs.
        outputs: Its outputs.
        parameters: What else its configuration says of it, by name.
        card: What the version says of itself; None where it says nothing.
    """

    model: str
    versions: tuple[str, ...]
    platform: str
    server: str
    preprocessing: Preprocessing
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: tuple[tuple[str, str], ...] = ()
    card: ModelCard | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"parameters": dict(self.parameters)}
