"""Answers of the client: `Prediction` for an image that was classified, `Failure` for one that was not, `ModelInfo`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client.parsing import parse_json

from ._exceptions import XrayError
from ._imaging.overlay import render_overlay
from ._imaging.preprocessing import Preprocessing
from ._imaging.reader import ImageSource, read_radiograph
from .contract import NOVELTY_LIMIT


@dataclass(frozen=True, slots=True)
class Timing:
    """Time that one call took, in parts; both parts add up over all attempts.

    Attributes:
        prepare_ms: Milliseconds of reading, decoding and scaling the image on this machine.
        server_ms: Milliseconds of the round trip: network, queue and model, and the pauses between attempts.
        attempts: Number of times the image was sent; 1 unless something went wrong on the way.
    """

    prepare_ms: float
    server_ms: float
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's answer for one radiograph.

    Attributes:
        file: Path of the file; None for an image that came from memory.
        finding: "Normal", "Pneumonia" or "Uncertain".
        probability: Calibrated probability of Pneumonia, 0 to 1.
        decision: Index of the finding in `FINDINGS`, decided at the model's operating point, not at 0.5.
        novelty: Distance from the training radiographs; above `NOVELTY_LIMIT` (1.0), rely on nothing else here.
        heatmap: Evidence: each image patch's share of the log-odds of Pneumonia, float32 (h, w), read-only; None if
            the call had `heatmap=False`.
        model: Name of the served model.
        model_version: The version that answered.
        milliseconds: Duration of the whole call, from reading the file to the checked answer.
        timing: Parts of that time.
        preprocessing: Preprocessing of the image; places the heatmap on the radiograph.
        request_id: Id of the request in the server's log; random, so that it says nothing about the image.
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
        """True if the image is unlike the radiographs that the model was trained on."""
        return self.novelty > NOVELTY_LIMIT

    def to_dict(self) -> dict[str, Any]:
        """Convert to a row of a table or a line of JSON; the same keys as `Failure.to_dict`."""
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
        """Convert to one line of JSON, the keys of `to_dict`."""
        return json.dumps(self.to_dict())

    def overlay(self, source: ImageSource, *, opacity: float = 0.6) -> Image.Image:
        """Paint the heatmap over the radiograph at its own size; see `render_overlay`.

        Args:
            source: The classified image; it is read again, at full size.
            opacity: Opacity of full evidence, 0 to 1.

        Returns:
            An RGB image of the radiograph's size.

        Raises:
            ValueError: There is no heatmap: the call had `heatmap=False`.
            ImageError: The source cannot be read.
        """
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
    """Result of `classify_many` for an image that could not be classified.

    Attributes:
        file: Path of the file; None for an image that came from memory.
        error: Reason: an `ImageError` of the file, or a `ServerError` or `ProtocolMismatch` of the server.
        model: Name of the served model.
        milliseconds: Duration of the whole call.
    """

    file: str | None
    error: XrayError
    model: str
    milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to a row of a table or a line of JSON; the same keys as `Prediction.to_dict`."""
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
        """Convert to one line of JSON, the keys of `to_dict`."""
        return json.dumps(self.to_dict())

    @property
    def reason(self) -> str:
        """Message of the error with its remedy, without the name of the file."""
        return str(self.error).removeprefix(f"{self.file}: ")

    def __str__(self) -> str:
        return f"{self.file or 'image'}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Input or output of the served model; -1 in the shape is a free dimension."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Estimate:
    """Figure with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Short model card, written into the served configuration when a version is published; unknown = None or empty.

    Attributes:
        operating_point: Probability of Pneumonia from which the finding would be Pneumonia if there were no band.
        sensitivity_asked: Target sensitivity of the operating point; None = it is where sensitivity equals specificity.
        uncertain_band: Low and high probability of Pneumonia; from low to below high the finding is Uncertain.
        temperature: Divisor of the logits (calibration).
        bias: Addend of Pneumonia's logit before the division (calibration).
        fitted_on: Data that calibration, operating point and band were fitted on.
        novelty_flagged: Share of the radiographs in `evaluated_on` with a novelty above `NOVELTY_LIMIT`.
        trained_on: Training data, with the number of radiographs of each class.
        evaluated_on: Data that the figures were measured on.
        intervals: Method of the confidence intervals.
        figures: Accuracy, sensitivity and so on, by name.
        checkpoint: SHA-256 of the weights.
        not_for: Uses that are ruled out.
        notice: Notice that goes with every answer, one line.
    """

    operating_point: float | None = None
    sensitivity_asked: float | None = None
    uncertain_band: tuple[float, float] | None = None
    temperature: float | None = None
    bias: float | None = None
    fitted_on: str = ""
    novelty_flagged: float | None = None
    trained_on: str = ""
    evaluated_on: str = ""
    intervals: str = ""
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    checkpoint: str = ""
    not_for: str = ""
    notice: str = ""

    def to_json(self) -> str:
        """Convert to one line of JSON, without what is unknown."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, "", {})})

    @classmethod
    def from_json(cls, text: str) -> ModelCard | None:
        """Parse a card; None if the text is not one. Keys of a later release are ignored."""
        try:
            values: Any = parse_json(text)
            band: Any = values.get("uncertain_band")
            numbers = ("operating_point", "sensitivity_asked", "temperature", "bias", "novelty_flagged")
            words = ("fitted_on", "trained_on", "evaluated_on", "intervals", "checkpoint", "not_for", "notice")
            known: dict[str, Any] = {name: float(values[name]) for name in numbers if name in values}
            known |= {name: str(values[name]) for name in words if name in values}
            return cls(
                uncertain_band=(float(band[0]), float(band[1])) if band else None,
                figures={str(name): _figure(figure) for name, figure in values.get("figures", {}).items()},
                **known,
            )
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            return None

    def rows(self) -> list[tuple[str, str]]:
        """Format for people: pairs of a heading and a line of text."""
        fitted = f", fitted on {self.fitted_on}" if self.fitted_on else ""
        rows = [
            ("decision", self._decision() + fitted if self._decision() else ""),
            ("calibration", "" if self.temperature is None
             else f"temperature {self.temperature:.3f}, bias {self.bias or 0:.3f}{fitted}"),
            ("novelty", "" if self.novelty_flagged is None
             else f"above 1 for {100 * self.novelty_flagged:.1f} % of the radiographs evaluated on"),
            ("trained on", self.trained_on),
            ("evaluated on", self.evaluated_on),
            *((name.replace("_", " "), str(figure)) for name, figure in self.figures.items()),
            ("intervals", self.intervals),
            ("checkpoint", self.checkpoint),
            ("not for", self.not_for),
            ("notice", self.notice),
        ]  # fmt: skip
        return [(name, text) for name, text in rows if text]

    def _decision(self) -> str:
        sentences = []
        if self.uncertain_band is not None:
            low, high = self.uncertain_band
            sentences.append(f"Normal below {low:.4f}, Pneumonia from {high:.4f}, Uncertain in between")
        if self.operating_point is not None:
            aim = "equal sensitivity and specificity"
            if self.sensitivity_asked is not None:
                aim = f"a sensitivity of {self.sensitivity_asked:g}"
            sentences.append(f"where a choice is forced, Pneumonia from {self.operating_point:.4f}, chosen for {aim}")
        return "; ".join(sentences)


def _figure(values: Mapping[str, Any]) -> Estimate:
    return Estimate(*(float(values[name]) for name in ("value", "low", "high")))


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Description of the served model, from its server.

    Attributes:
        model: Name of the model.
        versions: Versions that the server has loaded.
        platform: Triton's name of the engine that runs it.
        server: Name and version of the server.
        preprocessing: Preprocessing of its images.
        inputs: Input tensors.
        outputs: Output tensors.
        parameters: Further parameters of its configuration, by name.
        card: Model card of the version; None if it was published without one.
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
        """Convert to what `json.dumps` takes."""
        return asdict(self) | {"parameters": dict(self.parameters)}
