"""A real ONNX graph of the contract's tensors that runs in microseconds: its evidence is how bright each patch is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import parser

from xray_build.artefacts import ONNX_FILE
from xray_build.repository.publish import Publication, staged_version
from xray_client import Preprocessing


def write_small_graph(path: Path, *, temperature: float = 1.0) -> None:
    """Write the graph; another temperature gives other probabilities and heatmaps, and the same decisions."""
    text = f"""
    <ir_version: 10, opset_import: ["": 20]>
    brightness (uint8[n,1,224,224] image)
        => (float[n,2] probability, int32[n,1] decision, float[n,7,7] heatmap, float[n,1] novelty)
    <float[1] white = {{255.0}}, float[1] half = {{0.5}}, float[1] temperature = {{{temperature}}},
     int64[1] channel = {{1}}, int64[2] shape = {{0, -1}}, int64[1] columns = {{1}}>
    {{
        grey = Cast <to = 1> (image)
        scaled = Div (grey, white)
        centred = Sub (scaled, half)
        calibrated = Div (centred, temperature)
        patches = AveragePool <kernel_shape = [32, 32], strides = [32, 32]> (calibrated)
        heatmap = Squeeze (patches, channel)
        flat = Reshape (patches, shape)
        logit = ReduceMean <keepdims = 1> (flat, columns)
        against = Neg (logit)
        logits = Concat <axis = 1> (against, logit)
        probability = Softmax <axis = 1> (logits)
        positive = Greater (logit, against)
        decision = Cast <to = 6> (positive)
        novelty = Abs (logit)
    }}
    """
    model = parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def publish_small(
    repository: Path,
    *,
    temperature: float = 1.0,
    geometry: str = "stretch",
    version: int = Preprocessing().version,
    **options: Any,
) -> Publication:
    """Publish the graph as the next version; `options` are those of `Stage.publish`."""
    with staged_version(repository) as stage:
        write_small_graph(stage.folder / ONNX_FILE, temperature=temperature)
        options = {"about": {"note": "test"}, **options}
        return stage.publish(preprocessing=Preprocessing(geometry=geometry, version=version), **options)
