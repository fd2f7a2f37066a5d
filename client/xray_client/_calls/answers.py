"""Checks of an answer against the contract: nothing in it is used before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_client._exceptions import NotFinite, NotNormalised, OutputMismatch, ProtocolMismatch
from xray_client.contract import DECISION, FINDINGS, HEATMAP, LABELS, NOVELTY, PNEUMONIA, PROBABILITY

_SUM_TOLERANCE = 1e-3  # FP16 engines round each probability
_CONTRACT: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {  # 0 = any size from 1
    PROBABILITY: (np.float32, (1, len(LABELS))),
    DECISION: (np.int32, (1, 1)),
    HEATMAP: (np.float32, (1, 0, 0)),
    NOVELTY: (np.float32, (1, 1)),
}


@dataclass(frozen=True, slots=True)
class Values:
    """Contents of an answer that keeps the contract."""

    probability: float
    decision: int
    novelty: float
    heatmap: npt.NDArray[np.float32] | None


def check_answer(
    outputs: dict[str, npt.NDArray[Any]],
    requested: tuple[str, ...],
    mismatch: Callable[[str, type[ProtocolMismatch]], ProtocolMismatch],
) -> Values:
    """Check the requested outputs and return their values.

    Args:
        outputs: Name -> array with its batch dimension.
        requested: Names of the outputs that must be there; others are ignored.
        mismatch: Makes the error to raise, from a sentence and its kind.
    """
    for name in requested:
        if name not in outputs:
            raise mismatch(f"the answer has no output {name!r}", OutputMismatch)
        dtype, shape = _CONTRACT[name]
        array = outputs[name]
        if array.dtype != dtype:
            raise mismatch(f"output {name!r} is of type {array.dtype}, not {np.dtype(dtype)}", OutputMismatch)
        sides = zip(array.shape, shape, strict=False)
        if array.ndim != len(shape) or any(side < 1 or (want and side != want) for side, want in sides):
            raise mismatch(f"output {name!r} has the shape {list(array.shape)}", OutputMismatch)
        if not np.isfinite(array).all():
            raise mismatch(f"output {name!r} holds values that are not numbers", NotFinite)
    probabilities = outputs[PROBABILITY][0]
    if probabilities.min() < 0 or probabilities.max() > 1 or abs(float(probabilities.sum()) - 1) > _SUM_TOLERANCE:
        raise mismatch(f"the probabilities {probabilities.tolist()} are not from 0 to 1 with the sum 1", NotNormalised)
    decision = int(outputs[DECISION][0, 0])
    if not 0 <= decision < len(FINDINGS):
        raise mismatch(f"the decision {decision} is none of 0 to {len(FINDINGS) - 1}", OutputMismatch)
    return Values(
        probability=float(probabilities[PNEUMONIA]),
        decision=decision,
        novelty=float(outputs[NOVELTY][0, 0]),
        heatmap=outputs[HEATMAP][0] if HEATMAP in requested else None,
    )
