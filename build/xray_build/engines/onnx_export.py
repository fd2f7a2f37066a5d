"""PyTorch module -> one ONNX graph with the contract's names, types and shapes, checked against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from onnxscript import optimizer
from torch import nn

from xray_build.errors import BuildError
from xray_client import contract
from xray_client.console import quiet

from .parity import EXPORT, Parity, compare
from .runtime import Images, joined, run_onnx

OPSET = 20

_DTYPES = {contract.DECISION: onnx.TensorProto.INT32}


# Largest tensors that may be folded, in elements: far above any weight of these networks.
_FOLDED_AT_MOST = 1 << 26


def export_onnx(model: nn.Module, example: Images, path: Path) -> None:
    """Export `model` with a dynamic batch and check the graph against the contract.

    Args:
        model: uint8 (n, 1, s, s) -> the contract's outputs, in order; in evaluation mode.
        example: uint8 (n >= 2, 1, s, s).
        path: File to write.

    Raises:
        BuildError: The exporter failed, or names or types are not the contract's.
    """
    try:
        with quiet():
            program = torch.onnx.export(
                model,
                (torch.from_numpy(example),),
                input_names=[contract.IMAGE],
                output_names=list(contract.OUTPUTS),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
                opset_version=OPSET,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
            assert program is not None
            # By its own limits the exporter leaves products of weights, as in the heatmap, to be computed each time.
            optimizer.optimize_ir(program.model, input_size_limit=_FOLDED_AT_MOST, output_size_limit=_FOLDED_AT_MOST)
            program.save(str(path), external_data=False)
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


def check_parity(
    model: nn.Module, path: Path, images: Images, *, batch: int = 16, names: Sequence[str] | None = None
) -> Parity:
    """Compare the ONNX graph with PyTorch on real radiographs, in batches and one by one.

    Args:
        model: The module that was exported.
        path: The exported graph.
        images: uint8 (n, 1, s, s).
        batch: Size of the batches.
        names: Names of the images, for an error.

    Raises:
        BuildError: A difference exceeds the tolerance; names the output, the difference and the image.
    """
    reference = run_torch(model, images, batch=batch)
    alone = run_onnx(path, images[:4], batch=1)
    first = {name: values[:4] for name, values in reference.items()}
    names = names or [str(i) for i in range(len(images))]
    band = getattr(model, "band", torch.tensor([0.5])).numpy()
    compare(alone, first, EXPORT, step="ONNX (batch of one)", names=names[:4], band=band)
    return compare(run_onnx(path, images, batch=batch), reference, EXPORT, step="ONNX", names=names, band=band)


@torch.inference_mode()
def run_torch(model: nn.Module, images: Images, *, batch: int) -> dict[str, npt.NDArray[Any]]:
    """Compute the contract's outputs by PyTorch."""
    parts = [model(torch.from_numpy(images[i : i + batch])) for i in range(0, len(images), batch)]
    return joined([[tensor.numpy() for tensor in part] for part in parts])
