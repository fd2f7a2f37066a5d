"""PyTorch module -> one ONNX graph with the contract's names, types and shapes, checked against PyTorch."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from xray_client import contract

from ._errors import BuildError

OPSET = 20

# Largest difference from PyTorch that a build accepts.
MAX_PROBABILITY_DIFFERENCE = 1e-4
MAX_HEATMAP_DIFFERENCE = 1e-3  # log-odds per patch
MAX_NOVELTY_DIFFERENCE = 1e-3

_DTYPES = {contract.DECISION: onnx.TensorProto.INT32}


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest absolute differences from PyTorch over a set of radiographs.

    Attributes:
        images: How many radiographs were compared.
        probability: Of the probabilities.
        heatmap: Of the patches' log-odds.
        novelty: Of the novelty.
        decisions_changed: Decisions that differ although no threshold is within the probability's difference.
    """

    images: int
    probability: float
    heatmap: float
    novelty: float
    decisions_changed: int

    def as_dict(self) -> dict[str, float | int]:
        """For the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        return f"probability within {self.probability:.1e}, heatmap {self.heatmap:.1e}, novelty {self.novelty:.1e}"


def export_onnx(model: nn.Module, example: np.ndarray, path: Path) -> None:
    """Export `model` with a dynamic batch and check the graph against the contract.

    Args:
        model: uint8 (n, 1, s, s) -> the contract's outputs, in order; in evaluation mode.
        example: uint8 (n >= 2, 1, s, s).
        path: File to write.

    Raises:
        BuildError: The exporter failed, or names or types are not the contract's.
    """
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), _quiet_logs("torch.onnx", "onnxscript"):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (torch.from_numpy(example),),
                str(path),
                input_names=[contract.IMAGE],
                output_names=list(contract.OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                optimize=True,
                verbose=False,
            )
    except Exception as err:
        raise BuildError(f"the ONNX exporter failed: {str(err).splitlines()[0]}", source=str(path)) from err
    _check_interface(path)


def _check_interface(path: Path) -> None:
    onnx.checker.check_model(str(path), full_check=True)
    graph = onnx.load(str(path)).graph
    want = {contract.IMAGE: onnx.TensorProto.UINT8}
    want |= {name: _DTYPES.get(name, onnx.TensorProto.FLOAT) for name in contract.OUTPUTS}
    tensors = [*graph.input, *graph.output]
    found = {tensor.name: tensor.type.tensor_type.elem_type for tensor in tensors}
    if found != want:
        raise BuildError(f"the graph's tensors are {found}, the contract's {want}", source=str(path))
    for tensor in tensors:
        if not tensor.type.tensor_type.shape.dim[0].dim_param:
            raise BuildError(f"the batch dimension of {tensor.name} is fixed", source=str(path))


def check_parity(model: nn.Module, path: Path, images: np.ndarray, *, batch: int = 16) -> Parity:
    """Compare the ONNX graph with PyTorch on real radiographs, in batches and one by one.

    Args:
        model: The module that was exported.
        path: The exported graph.
        images: uint8 (n, 1, s, s).
        batch: Size of the batches.

    Raises:
        BuildError: A difference is over its bound; names the output, how far, and on which image.
    """
    reference = run_torch(model, images, batch=batch)
    candidate = run_onnx(path, images, batch=batch)
    alone = run_onnx(path, images[:4], batch=1)
    difference = {
        name: _largest_difference(name, candidate[name], reference[name], bound)
        for name, bound in (
            (contract.PROBABILITY, MAX_PROBABILITY_DIFFERENCE),
            (contract.HEATMAP, MAX_HEATMAP_DIFFERENCE),
            (contract.NOVELTY, MAX_NOVELTY_DIFFERENCE),
        )
    }
    _largest_difference(
        "probability (batch of one)", alone[contract.PROBABILITY], reference[contract.PROBABILITY][:4], 1e-4
    )
    changed = np.flatnonzero((candidate[contract.DECISION] != reference[contract.DECISION])[:, 0])
    # A decision may only flip where the probability sits on a threshold within the difference just measured.
    at_edge = [
        i for i in changed if _near_band(model, reference[contract.PROBABILITY][i, 1], difference[contract.PROBABILITY])
    ]
    if len(changed) > len(at_edge):
        raise BuildError(f"{len(changed)} decisions differ between ONNX and PyTorch, first on image {changed[0]}")
    return Parity(
        len(images),
        difference[contract.PROBABILITY],
        difference[contract.HEATMAP],
        difference[contract.NOVELTY],
        len(changed),
    )


def _near_band(model: nn.Module, probability: float, difference: float) -> bool:
    band = getattr(model, "band", torch.tensor([0.5])).numpy()
    return bool(np.abs(band - probability).min() <= 2 * difference)


def _largest_difference(name: str, found: np.ndarray, expected: np.ndarray, bound: float) -> float:
    apart = np.abs(found - expected).reshape(len(expected), -1).max(axis=1)
    worst = int(np.nanargmax(np.where(np.isnan(apart), np.inf, apart)))
    if not apart[worst] <= bound:
        raise BuildError(f"{name} differs by {apart[worst]:.2e} on image {worst}, more than {bound:.0e}")
    return float(apart[worst])


@torch.inference_mode()
def run_torch(model: nn.Module, images: np.ndarray, *, batch: int) -> dict[str, np.ndarray]:
    """The contract's outputs from PyTorch, for uint8 images (n, 1, s, s)."""
    parts = [model(torch.from_numpy(images[i : i + batch])) for i in range(0, len(images), batch)]
    return _joined([[tensor.numpy() for tensor in part] for part in parts])


def run_onnx(path: Path, images: np.ndarray, *, batch: int) -> dict[str, np.ndarray]:
    """The contract's outputs from ONNX Runtime on the CPU, for uint8 images (n, 1, s, s)."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = list(contract.OUTPUTS)
    parts = [session.run(names, {contract.IMAGE: images[i : i + batch]}) for i in range(0, len(images), batch)]
    return _joined(parts)


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(column) for name, column in zip(contract.OUTPUTS, columns, strict=True)}


@contextlib.contextmanager
def _quiet_logs(*names: str):
    """Keep the exporter's progress notes out of our output; errors still come through."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
