"""The exported graph against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from finetune.models.checkpoint import load_checkpoint
from xray_build.artefacts import MANIFEST_FILE, ONNX_FILE
from xray_build.engines.onnx_export import OPSET, check_parity, export_onnx, run_onnx, run_torch
from xray_build.errors import BuildError
from xray_client import contract


@pytest.fixture(scope="module")
def images(trained: Path) -> np.ndarray:
    return np.load(trained / "checkpoint" / "parity_images.npy")


@pytest.fixture(scope="module")
def graph(repository: Path) -> Path:
    return repository / "medclip" / "1" / ONNX_FILE


class _Nudged(nn.Module):
    """The served model with one output off by a little."""

    def __init__(self, model: nn.Module, output: int, by: float) -> None:
        super().__init__()
        self.model, self.output, self.by = model, output, by
        self.band = model.band

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = list(self.model(image))
        outputs[self.output] = outputs[self.output] + self.by
        return tuple(outputs)


def test_the_graph_has_the_contracts_names_types_and_a_free_batch(graph: Path) -> None:
    model = onnx.load(str(graph))
    assert next(o.version for o in model.opset_import if o.domain == "") >= OPSET
    assert [t.name for t in model.graph.input] == [contract.IMAGE]
    assert [t.name for t in model.graph.output] == list(contract.OUTPUTS)
    assert not (graph.parent / "model.onnx.data").exists()


@pytest.mark.parametrize("batch", [1, 2, 5, 32])
def test_any_batch_gives_the_answers_of_pytorch(trained: Path, graph: Path, images: np.ndarray, batch: int) -> None:
    model, _ = load_checkpoint(trained / "checkpoint")
    found, expected = run_onnx(graph, images[:32], batch=batch), run_torch(model, images[:32], batch=32)
    assert np.abs(found["probability"] - expected["probability"]).max() <= 1e-4
    assert np.array_equal(found["decision"], expected["decision"])
    assert np.abs(found["heatmap"] - expected["heatmap"]).max() <= 1e-3


def test_the_heatmap_and_a_constant_make_up_the_served_log_odds(graph: Path, images: np.ndarray) -> None:
    answers = run_onnx(graph, images, batch=16)
    log_odds = np.log(answers["probability"][:, 1]) - np.log(answers["probability"][:, 0])
    rest = log_odds - answers["heatmap"].sum(axis=(1, 2))
    certain = np.abs(log_odds) > 12  # float32 probabilities close to 1 have lost the digits
    np.testing.assert_allclose(rest[~certain], np.median(rest), atol=5e-3)


@pytest.mark.parametrize(("output", "name"), [(0, "probability"), (2, "heatmap"), (3, "novelty")])
def test_a_graph_that_differs_from_pytorch_stops_the_build(
    trained: Path, graph: Path, images: np.ndarray, output: int, name: str
) -> None:
    model, _ = load_checkpoint(trained / "checkpoint")
    with pytest.raises(BuildError, match=f"{name} differs by .* on image"):
        check_parity(_Nudged(model, output, 0.01), graph, images[:8])


def test_a_changed_decision_or_a_nan_stops_the_build(trained: Path, graph: Path, images: np.ndarray) -> None:
    model, _ = load_checkpoint(trained / "checkpoint")
    with pytest.raises(BuildError, match="decisions differ"):
        check_parity(_Nudged(model, 1, 1), graph, images[:8])
    with pytest.raises(BuildError, match="probability differs by"):
        check_parity(_Nudged(model, 0, float("nan")), graph, images[:8])


def test_a_module_without_the_contracts_types_is_refused(images: np.ndarray, tmp_path: Path) -> None:
    class Wrong(nn.Module):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            mean = image.float().mean(dim=(2, 3))
            return mean, mean, mean, mean * 2

    with pytest.raises(BuildError, match="the contract's"):
        export_onnx(Wrong().eval(), images[:2], tmp_path / ONNX_FILE)


def test_the_manifest_records_the_parity_and_the_training(repository: Path) -> None:
    import json

    manifest = json.loads((repository / "medclip" / "1" / MANIFEST_FILE).read_text())
    assert manifest["parity"]["probability"] <= 1e-4
    assert manifest["parity"]["images"] > 30
    assert manifest["decision"]["operating_point"] > 0
    assert manifest["metrics"]["val"]["after"]["auroc"]["value"] > 0.5
