"""What a published version says of itself, in short: how it decides, what it was trained on, how good it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Written into the served configuration when a version is published. What is not known is None or empty.

    Attributes:
        operating_point: Probability of Pneumonia from which a forced choice says Pneumonia.
        sensitivity_asked: The sensitivity that it was chosen for; None = it is where sensitivity and specificity are
            equal, where `operating_point` is not None.
        uncertain_band: From the first to below the second probability the finding is Uncertain.
        temperature: Calibration: the logits were divided by it,
        bias: after this was added to Pneumonia's.
        fitted_on: Data that calibration, operating point and band were fitted on.
        novelty_flagged: Share of the judged radiographs with a novelty above `NOVELTY_LIMIT`.
        trained_on: Data, and how many of each class.
        judged_on: Data that the figures are of.
        intervals: How theirs were made.
        figures: Accuracy, sensitivity and so on, by name.
        checkpoint: SHA-256 of the weights.
        not_for: What it must not be used for.
        notice: The same in one line.
    """

    operating_point: float | None = None
    sensitivity_asked: float | None = None
    uncertain_band: tuple[float, float] | None = None
    temperature: float | None = None
    bias: float | None = None
    fitted_on: str = ""
    novelty_flagged: float | None = None
    trained_on: str = ""
    judged_on: str = ""
    intervals: str = ""
    figures: Mapping[str, Estimate] = field(default_factory=dict)
    checkpoint: str = ""
    not_for: str = ""
    notice: str = ""

    def to_json(self) -> str:
        """As one line of JSON, without what is not known."""
        return json.dumps({name: value for name, value in asdict(self).items() if value not in (None, "", {})})

    @classmethod
    def from_json(cls, text: str) -> ModelCard | None:
        """Read it back; None where it is no card. Keys of a later release are passed over."""
        try:
            values: Any = json.loads(text)
            band: Any = values.get("uncertain_band")
            numbers = ("operating_point", "sensitivity_asked", "temperature", "bias", "novelty_flagged")
            words = ("fitted_on", "trained_on", "judged_on", "intervals", "checkpoint", "not_for", "notice")
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
        """For people: what each line says, and of what."""
        fitted = f", fitted on {self.fitted_on}" if self.fitted_on else ""
        rows = [
            ("decision", self._decision() + fitted if self._decision() else ""),
            ("calibration", "" if self.temperature is None
             else f"temperature {self.temperature:.3f}, bias {self.bias or 0:.3f}{fitted}"),
            ("novelty", "" if self.novelty_flagged is None
             else f"above 1 for {100 * self.novelty_flagged:.1f} % of the radiographs judged on"),
            ("trained on", self.trained_on),
            ("judged on", self.judged_on),
            *((name.replace("_", " "), str(figure)) for name, figure in self.figures.items()),
            ("intervals", self.intervals),
            ("checkpoint", self.checkpoint),
            ("not for", self.not_for),
            ("notice", self.notice),
        ]  # fmt: skip
        return [(name, text) for name, text in rows if text]

    def _decision(self) -> str:
        said = []
        if self.uncertain_band is not None:
            low, high = self.uncertain_band
            said.append(f"Normal below {low:.4f}, Pneumonia from {high:.4f}, Uncertain in between")
        if self.operating_point is not None:
            aim = "equal sensitivity and specificity"
            if self.sensitivity_asked is not None:
                aim = f"a sensitivity of {self.sensitivity_asked:g}"
            said.append(f"where a choice is forced, Pneumonia from {self.operating_point:.4f}, chosen for {aim}")
        return "; ".join(said)


def _figure(values: Mapping[str, Any]) -> Estimate:
    return Estimate(*(float(values[name]) for name in ("value", "low", "high")))
