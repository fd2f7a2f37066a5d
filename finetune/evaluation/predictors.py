"""Predictions of a checkpoint or a server for prepared radiographs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune.models.served_model import ServedModel
from xray_client import Prediction, Preprocessing, XrayClient
from xray_client.console import track

_BATCH = 32


@dataclass(frozen=True)
class Predictions:
    """Outputs of the served graph for n radiographs.

    Attributes:
        probability: float (n,), of Pneumonia.
        decision: int (n,), index into FINDINGS.
        heatmap: float (n, h, w), log-odds.
        novelty: float (n,), 1 = limit.
    """

    probability: npt.NDArray[Any]
    decision: npt.NDArray[Any]
    heatmap: npt.NDArray[Any]
    novelty: npt.NDArray[Any]


class Predictor(Protocol):
    """Model that can be evaluated."""

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing that the model expects."""
        ...

    def predict(self, images: npt.NDArray[Any], description: str) -> Predictions:
        """Predict for prepared radiographs, uint8 (n, s, s); `description` labels the progress bar."""
        ...


class CheckpointPredictor:
    """Served graph in PyTorch."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.preprocessing = model.eval(), model.classifier.config.preprocessing

    @torch.inference_mode()
    def predict(self, images: npt.NDArray[Any], description: str) -> Predictions:
        """Implement `Predictor`."""
        parts = [self.model(torch.from_numpy(batch[:, None].copy())) for batch in batches(images, description)]
        probability, decision, heatmap, novelty = (torch.cat(outputs).numpy() for outputs in zip(*parts, strict=True))
        return Predictions(probability[:, 1], decision[:, 0], heatmap, novelty[:, 0])


class ServerPredictor:
    """Model behind Triton.

    The error of a radiograph that fails is raised: metrics over the others alone would mislead.
    """

    def __init__(self, client: XrayClient) -> None:
        self.client, self.preprocessing = client, client.preprocessing

    def predict(self, images: npt.NDArray[Any], description: str) -> Predictions:
        """Implement `Predictor`."""
        found: list[Prediction] = []
        for batch in batches(images, description):
            for result in self.client.classify_many([image[None] for image in batch], heatmap=True):
                if not isinstance(result, Prediction):
                    raise result.error
                found.append(result)
        return Predictions(
            np.array([p.probability for p in found]),
            np.array([p.decision for p in found]),
            np.stack([np.asarray(p.heatmap) for p in found]),
            np.array([p.novelty for p in found]),
        )


def batches(images: npt.NDArray[Any], description: str) -> Iterator[npt.NDArray[Any]]:
    """Split images into batches under a progress bar."""
    starts = range(0, len(images), _BATCH)
    for start in track(starts, description, total=len(starts)):
        yield images[start : start + _BATCH]
