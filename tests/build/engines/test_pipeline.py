"""Every step of a build of the reference model on real radiographs, by NVIDIA's and OpenVINO's own tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from finetune.plugin import model
from tests.helpers.commands import Built, xray_build
from tests.helpers.fixtures_built import CALIBRATION_COUNT, LABELS, write_table
from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    FP16_FILE,
    INT8_FILE,
    INT8_WEIGHTS_FILE,
    ONNX_FILE,
    PLAN_FILE,
    RTX_FILE,
)
from xray_build.engines import pipeline
from xray_build.engines.build_record import BuildRecord
from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_build.engines.fp16 import tower_and_rest
from xray_build.engines.onnx_types import weight_bytes
from xray_build.engines.runtime import run_onnx, run_openvino
from xray_build.engines.tensorrt import BuilderOptions
from xray_build.errors import BuildError
from xray_client import Preprocessing, contract

pytestmark = pytest.mark.slow

TENSORS = {
    "image": ("UINT8", (-1, 1, 224, 224)),
    "probability": ("FLOAT", (-1, 2)),
    "decision": ("INT32", (-1, 1)),
    "heatmap": ("FLOAT", (-1, 7, 7)),
    "novelty": ("FLOAT", (-1, 1)),
}


@pytest.fixture(scope="module")
def others(twenty_radiographs: Path, calibration_set: CalibrationSet, preprocessing: Preprocessing) -> np.ndarray:
    """Four radiographs that no step has seen, and two images of nothing like a chest."""
    everything = read_calibration(twenty_radiographs, preprocessing)
    seen_by_none = everything.images[[name not in calibration_set.names for name in everything.names]]
    assert len(seen_by_none) == 4
    noise = np.random.default_rng(0).integers(0, 256, seen_by_none.shape[1:], dtype=np.uint8)
    stripes = np.broadcast_to(np.arange(224) % 2 * 255, seen_by_none.shape[1:]).astype(np.uint8)
    return np.concatenate([seen_by_none, noise[None], stripes[None]])


@pytest.mark.parametrize("step", ["onnx", "fp16", "rtx", "int8"])
def test_each_command_says_how_it_went_in_one_line(built: Built, step: str) -> None:
    answer = built.answers[step]
    assert answer.exit_code == 0, answer.output
    assert len(answer.output.splitlines()) == 1, answer.output


def test_the_record_holds_every_step_with_hashes_parity_and_tools(
    built: Built, calibration_set: CalibrationSet
) -> None:
    record = BuildRecord.read(built.folder)
    assert [step.name for step in record.steps] == ["onnx", "fp16", "rtx", "int8"]
    assert record.calibration_set["sha256"] == calibration_set.sha256
    for step in record.steps:
        for artefact in step.artefacts:
            assert record.check_artefact(built.folder, artefact["file"]).stat().st_size == artefact["bytes"]
        assert all(version != "none" for version in step.tools.values())
        assert step.parity is None or step.parity["images"] == CALIBRATION_COUNT
        assert step.parity is None or step.parity["calibration_set_sha256"] == calibration_set.sha256


def test_a_changed_artefact_is_not_built_upon(built: Built, tmp_path: Path) -> None:
    for path in built.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with (tmp_path / ONNX_FILE).open("ab") as file:
        file.write(b"\0")
    answer = xray_build("fp16", tmp_path)
    assert answer.exit_code == 1
    assert "model.onnx is not the file that was built" in answer.output


def test_no_product_of_weights_is_left_to_be_computed_for_every_image(built: Built) -> None:
    graph = onnx.load(str(built.folder / ONNX_FILE)).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.input and set(node.input) <= constants]


def test_half_precision_keeps_the_types_outside_and_the_trust_part_in_fp32(built: Built) -> None:
    path = built.folder / FP16_FILE
    graph = onnx.shape_inference.infer_shapes(onnx.load(str(path))).graph
    found = {t.name: t.type.tensor_type.elem_type for t in [*graph.input, *graph.output]}
    assert found[contract.IMAGE] == onnx.TensorProto.UINT8
    assert found[contract.DECISION] == onnx.TensorProto.INT32
    assert {found[name] for name in ("probability", "heatmap", "novelty")} == {onnx.TensorProto.FLOAT}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    _, rest = tower_and_rest(onnx.load(str(built.folder / ONNX_FILE)))
    norms = [node for node in graph.node if node.name in rest and node.op_type in ("ReduceL2", "Softmax", "MatMul")]
    assert norms
    assert all(types.get(node.output[0], onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT for node in norms)
    assert weight_bytes(path)["FLOAT16"] > 4e6


def test_half_precision_holds_on_radiographs_it_was_not_made_with(built: Built, others: np.ndarray) -> None:
    full, half = (run_onnx(built.folder / name, others, batch=6) for name in (ONNX_FILE, FP16_FILE))
    assert full["novelty"][-2:].min() > 1, "noise and stripes are no chests"
    assert np.abs(half["probability"] - full["probability"])[:-2].max() <= 2e-3
    assert np.array_equal(half["decision"][:-2], full["decision"][:-2])
    np.testing.assert_allclose(half["novelty"], full["novelty"], rtol=2e-2)


def test_without_tensorrt_it_says_in_one_line_what_is_missing_and_what_still_was_built(built: Built) -> None:
    answer = built.answers["plan"]
    if answer.exit_code == 0:
        pytest.skip("this machine builds plans")
    assert answer.exit_code == 3
    assert len(answer.output.splitlines()) == 1
    assert answer.output.startswith("plan not built: ")
    assert answer.output.endswith("still built: model.onnx, model_fp16.onnx\n")
    assert BuildRecord.read(built.folder).missing.keys() == {"plan"}
    assert not (built.folder / PLAN_FILE).exists()


def _assert_int8_kept_the_accuracy(folder: Path, images: int) -> None:
    details = BuildRecord.read(folder).step("int8").details
    assert details["evaluated_on"]["images"] == images
    assert details["accuracy"]["before"] - details["accuracy"]["after"] <= 0.003
    assert details["auroc"]["before"] - details["auroc"]["after"] <= 0.002


def test_int8_loses_no_more_than_allowed_and_says_how_much(built: Built) -> None:
    _assert_int8_kept_the_accuracy(built.folder, CALIBRATION_COUNT)
    details = BuildRecord.read(built.folder).step("int8").details
    quantized, weighty = (int(word) for word in details["operations_in_8_bits"].split(" of "))
    assert quantized > 0.8 * weighty
    assert (built.folder / INT8_WEIGHTS_FILE).stat().st_size < 0.7 * (built.folder / ONNX_FILE).stat().st_size


def test_int8_calibrated_on_100_radiographs_loses_no_more_than_allowed_on_200(real_data: Path, tmp_path: Path) -> None:
    images = real_data / "chest_xray_224" / "train"
    folders = [sorted((images / folder).iterdir()) for folder in LABELS]
    chosen = [files[i] for files in folders for i in np.linspace(0, len(files) - 1, 100).astype(int)]
    table = write_table(tmp_path / "validation.csv", chosen)
    out = tmp_path / "built"
    for words in (
        ["onnx", "reference", "--out", out, "--images", images, "--count", 100],
        ["int8", out, "--validation", table],
    ):
        answer = xray_build(*words)
        assert answer.exit_code == 0, answer.output
    _assert_int8_kept_the_accuracy(out, 200)


def test_int8_tells_what_is_no_chest_as_well(built: Built, others: np.ndarray) -> None:
    full = run_onnx(built.folder / ONNX_FILE, others, batch=6)
    small = run_openvino(built.folder / INT8_FILE, others, batch=6)
    assert np.array_equal(small["novelty"] > 1, full["novelty"] > 1)


def test_labels_of_one_class_are_refused(built: Built, twenty_radiographs: Path, tmp_path: Path) -> None:
    normal = sorted((twenty_radiographs / "train" / "NORMAL").iterdir())
    pneumonia = sorted((twenty_radiographs / "train" / "PNEUMONIA").iterdir())
    rows = [f"{path},Normal,val" for path in normal] + [f"{path},Pneumonia,train" for path in pneumonia]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,split", *rows]))
    answer = xray_build("int8", built.folder, "--validation", tmp_path / "table.csv")
    assert answer.exit_code == 1
    assert "needs radiographs of both classes" in answer.output


def test_steps_need_the_ones_before(tmp_path: Path) -> None:
    answer = xray_build("fp16", tmp_path)
    assert answer.exit_code == 1
    assert "`xray-build onnx` starts a build" in answer.output


@pytest.mark.parametrize("name", ["reference", "random:medclip-vit", "random:medclip-resnet"])
def test_nvidias_compiler_builds_every_network_for_any_batch_with_fp16_weights(
    name: str, built: Built, calibration_set: CalibrationSet, tmp_path: Path
) -> None:
    few = replace(calibration_set, images=calibration_set.images[:4], names=calibration_set.names[:4])
    folder = built.folder
    if name != "reference":
        folder = tmp_path
        record = pipeline.build(model(name), few, folder, ["rtx"], options=BuilderOptions(max_batch=16))
        assert record.step("fp16").details["tower_in_fp32"] == 0
    step = json.loads((folder / BUILD_RECORD_FILE).read_text())["steps"]
    engine = next(entry for entry in step if entry["name"] == "rtx")["details"]["engine"]
    assert {name: (kind, tuple(shape)) for name, (kind, shape) in engine["tensors"].items()} == TENSORS
    assert (folder / RTX_FILE).stat().st_size == engine["bytes"]
    weights = sum(weight_bytes(folder / FP16_FILE).values())
    assert 0.9 * weights < engine["bytes"] < 1.4 * weights, "its weights have the types of the FP16 graph"
    assert engine["bytes"] < 0.9 * (folder / ONNX_FILE).stat().st_size


class _OtherwiseWhenExported(nn.Module):
    """A model whose export is not the model: the fault that a comparison is there for."""

    def __init__(self, served: nn.Module) -> None:
        super().__init__()
        self.served = served
        self.band = served.band

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        probability, *rest = self.served(image)
        return (probability + 0.01 if torch.compiler.is_exporting() else probability, *rest)


def test_a_graph_that_is_not_the_model_stops_the_build_and_leaves_nothing(
    calibration_set: CalibrationSet, tmp_path: Path
) -> None:
    reference = model("reference")
    faulty = replace(reference, module=_OtherwiseWhenExported(reference.module))
    few = replace(calibration_set, images=calibration_set.images[:4], names=calibration_set.names[:4])
    with pytest.raises(
        BuildError, match=r"ONNX.*: probability differs by 1\.00e-02 on image .*\.jpeg, more than 1e-04"
    ):
        pipeline.build(faulty, few, tmp_path, ["onnx", "rtx"])
    assert list(tmp_path.iterdir()) == []


def test_unknown_steps_and_int8_without_labels_are_refused_before_anything_is_built(
    calibration_set: CalibrationSet, tmp_path: Path
) -> None:
    reference = model("reference")
    with pytest.raises(BuildError, match="'fp8' is none of"):
        pipeline.build(reference, calibration_set, tmp_path, ["fp8"])
    with pytest.raises(BuildError, match="--validation"):
        pipeline.build(reference, calibration_set, tmp_path, ["int8"])
    assert list(tmp_path.iterdir()) == []
