"""Answers of a checkpoint, or of a server, to prepared radiographs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from finetune.models.served_model import ServedModel
from xray_client import Prediction, Preprocessing, XrayClient
from xray_client.console import track

_BATCH = 32


@dataclass(frozen=True)
class Answers:
    """What the served graph says of n radiographs.

    Attributes:
        probability: float (n,), of Pneumonia.
        decision: int (n,), index into FINDINGS.
        heatmap: float (n, h, w), log-odds.
        novelty: float (n,), 1 = the limit.
    """

    probability: np.ndarray
    decision: np.ndarray
    heatmap: np.ndarray
    novelty: np.ndarray


class Predictor(Protocol):
    """Whatever answers like the served model."""

    @property
    def preprocessing(self) -> Preprocessing:
        """How it wants its radiographs."""
        ...

    def answer(self, images: np.ndarray, what: str) -> Answers:
        """Prepared radiographs uint8 (n, s, s) -> answers; `what` names the work on the progress bar."""
        ...


class CheckpointPredictor:
    """The served graph in PyTorch."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.preprocessing = model.eval(), model.classifier.config.preprocessing

    @torch.inference_mode()
    def answer(self, images: np.ndarray, what: str) -> Answers:
        """See `Predictor`."""
        parts = [self.model(torch.from_numpy(batch[:, None].copy())) for batch in batches(images, what)]
        probability, decision, heatmap, novelty = (torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
        return Answers(probability[:, 1], decision[:, 0], heatmap, novelty[:, 0])


class ServerPredictor:
    """A model behind Triton. A radiograph that is not answered raises: figures over a part would mislead."""

    def __init__(self, client: XrayClient) -> None:
        self.client, self.preprocessing = client, client.preprocessing

    def answer(self, images: np.ndarray, what: str) -> Answers:
        """See `Predictor`."""
        found: list[Prediction] = []
        for batch in batches(images, what):
            for result in self.client.classify_many([image[None] for image in batch], heatmap=True):
                if not isinstance(result, Prediction):
                    raise result.error
                found.append(result)
        return Answers(
            np.array([p.probability for p in found]),
            np.array([p.decision for p in found]),
            np.stack([np.asarray(p.heatmap) for p in found]),
            np.array([p.novelty for p in found]),
        )


def batches(images: np.ndarray, what: str) -> Iterator[np.ndarray]:
    starts = range(0, len(images), _BATCH)
    for start in track(starts, what, total=len(starts)):
        yield images[start : start + _BATCH]
