"""Contents of an ONNX graph: number of nodes, and bytes of weights by type."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import onnx


def count_nodes(path: Path) -> int:
    """Count the nodes of a graph."""
    return len(onnx.load(str(path), load_external_data=False).graph.node)


def weight_bytes(path: Path) -> dict[str, int]:
    """Bytes of the graph's constants by type, such as {"FLOAT16": 55000000}."""
    found: Counter[str] = Counter()
    for tensor in onnx.load(str(path)).graph.initializer:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        found[kind] += math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return dict(found)
