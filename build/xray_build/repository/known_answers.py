"""Known answers: a few prepared radiographs and the answers of a version's graph to them, part of every version.

A publisher compares them with what a server answers, and so tells that it runs this version and runs it rightly,
whatever the engine. The radiographs are the model's own where the build has some; otherwise a chest is drawn, which
serves the purpose as well. Engines are warmed up with the first of them.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from xray_build.artefacts import INT8_FILE, KNOWN_ANSWERS_FILE, ONNX_FILE, PLAN_FILE
from xray_build.errors import BuildError
from xray_client import Prediction, Preprocessing, contract

_IMAGE = contract.IMAGE
MAX_RADIOGRAPHS = 2


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Allowed difference between a served answer and the known one.

    Attributes:
        probability: Difference of the probability of Pneumonia.
        relative: Difference of heatmap and novelty, as a share of the largest known value or of 1, the larger of both.
        same_decision: True if the decision must be the same.
    """

    probability: float
    relative: float
    same_decision: bool = True


# Triton's OpenVINO backend computes in bfloat16, unasked, on processors that have it.
OPENVINO_BACKEND = "openvino"

# By artefact. The graph itself differs only from processor to processor; FP16 has the tolerance of its build; INT8
# gives other answers, which the build accepted by their accuracy.
TOLERANCES = {
    OPENVINO_BACKEND: Tolerance(1e-2, 5e-2, same_decision=False),
    ONNX_FILE: Tolerance(1e-3, 1e-3),
    PLAN_FILE: Tolerance(2e-3, 2e-2),
    INT8_FILE: Tolerance(0.1, 0.2, same_decision=False),
}


@dataclass(frozen=True)
class KnownAnswers:
    """Radiographs with their known answers.

    Attributes:
        images: uint8 (k, 1, s, s).
        answers: The contract's outputs, each with k rows.
    """

    images: npt.NDArray[np.uint8]
    answers: dict[str, npt.NDArray[Any]]

    def save(self, folder: Path) -> None:
        """Write `known.npz` into a version's folder."""
        buffer = io.BytesIO()  # numpy's own writer does not close well where the disk is full
        np.savez(buffer, **{_IMAGE: self.images}, **self.answers)
        (folder / KNOWN_ANSWERS_FILE).write_bytes(buffer.getvalue())

    @classmethod
    def load(cls, folder: Path) -> KnownAnswers:
        """Read a version's `known.npz`.

        Raises:
            BuildError: It is missing or damaged.
        """
        arrays = _arrays(folder / KNOWN_ANSWERS_FILE)
        missing = {_IMAGE, *contract.OUTPUTS} - arrays.keys()
        if missing:
            raise BuildError(
                f"{KNOWN_ANSWERS_FILE} lacks {', '.join(sorted(missing))}", source=str(folder), remedy="publish again"
            )
        return cls(arrays[_IMAGE], {name: arrays[name] for name in contract.OUTPUTS})

    def difference(self, row: int, answer: Prediction, artefact: str) -> str:
        """Describe how a served answer differs from the known one by more than its tolerance; "" = it does not.

        Args:
            row: Row of the image in `images`.
            answer: The served answer.
            artefact: File that the serving engine runs (a key of `TOLERANCES`).
        """
        tolerance = TOLERANCES[artefact]
        known = {name: values[row] for name, values in self.answers.items()}
        probability = float(known[contract.PROBABILITY][contract.PNEUMONIA])
        if not abs(answer.probability - probability) <= tolerance.probability:
            return f"probability {answer.probability:.4f}, the known answer is {probability:.4f}"
        decision = int(known[contract.DECISION][0])
        if tolerance.same_decision and answer.decision != decision:
            return f"finding {answer.finding}, the known answer is {contract.FINDINGS[decision]}"
        for name, served in ((contract.NOVELTY, answer.novelty), (contract.HEATMAP, answer.heatmap)):
            scale = max(1.0, float(np.abs(known[name]).max()))
            apart = float(np.abs(np.asarray(served) - known[name]).max())
            if not apart <= tolerance.relative * scale:
                return f"{name} is {apart:.2g} away from the known answer"
        return ""


def answer_known_radiographs(
    folder: Path, images: npt.NDArray[np.uint8] | None, preprocessing: Preprocessing
) -> KnownAnswers:
    """Compute the known answers by the version's own `model.onnx` and write `known.npz`.

    Args:
        folder: Folder of the staged version. A `known.npz` in it may bring the radiographs, as `image`.
        images: Prepared radiographs, uint8 (k >= 1, 1, s, s); None = those in `known.npz`, else a drawn chest.
        preprocessing: Preprocessing of the radiographs.

    Raises:
        BuildError: The graph is missing, does not run, or the radiographs are not prepared for it.
    """
    if images is None and (folder / KNOWN_ANSWERS_FILE).exists():
        images = _arrays(folder / KNOWN_ANSWERS_FILE).get(_IMAGE)
    if images is None:
        images = drawn_chest(preprocessing.size)[None]
    if images.dtype != np.uint8 or not len(images) or images.shape[1:] != preprocessing.shape:
        raise BuildError(f"known radiographs are {images.dtype} {images.shape}, not uint8 (k, *{preprocessing.shape})")
    known = KnownAnswers(images[:MAX_RADIOGRAPHS], _run(folder / ONNX_FILE, images[:MAX_RADIOGRAPHS]))
    for name, values in known.answers.items():
        if not np.isfinite(values).all():
            raise BuildError(f"{name} of a known radiograph is not finite", source=str(folder / ONNX_FILE))
    known.save(folder)
    return known


def drawn_chest(size: int) -> npt.NDArray[np.uint8]:
    """Draw a grey field with two dark lungs and a bright heart, uint8 (1, size, size): no patient, always the same."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    picture = 150 - 60 * np.abs(x - 0.5)
    for centre, width, height, grey in ((0.3, 0.14, 0.3, -90), (0.7, 0.14, 0.3, -90), (0.56, 0.12, 0.16, 60)):
        distance = ((x - centre) / width) ** 2 + ((y - (0.62 if grey > 0 else 0.5)) / height) ** 2
        picture += grey / (1 + distance**3)
    chest: npt.NDArray[np.uint8] = np.clip(picture, 0, 255).astype(np.uint8)[None]
    return chest


def _run(graph: Path, images: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    if not graph.is_file():
        raise BuildError(
            f"a version needs {ONNX_FILE}, which all other artefacts are compared with",
            source=str(graph.parent),
            remedy="build the ONNX graph first",
        )
    try:
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        outputs = session.run(list(contract.OUTPUTS), {_IMAGE: images})
    except Exception as err:  # ONNX Runtime's errors have no base of their own
        what = str(err).splitlines()[0]
        raise BuildError(f"does not run: {what}", source=str(graph), remedy="build it again") from err
    return dict(zip(contract.OUTPUTS, outputs, strict=True))


def _arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile) as err:
        raise BuildError(f"cannot be read: {err}", source=str(path), remedy="publish again") from err
