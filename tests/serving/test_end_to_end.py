"""The whole way on a real Triton: what is served is what was trained, and every caller gets it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as tritongrpc
from click.testing import CliRunner
from PIL import Image

from finetune.export import export_and_publish
from finetune.models.checkpoint import load_checkpoint
from finetune.run import main as finetune_run
from xray_build.artefacts import MANIFEST_FILE
from xray_build.engines.onnx_export import run_torch
from xray_build.triton.server import ServerStartError, TritonServer
from xray_client import FINDINGS, Prediction, XrayClient, contract, load_radiograph
from xray_client.cli.main import main as xray_client

ROOT = Path(__file__).resolve().parents[2]


def _test_images(folder: Path) -> list[Path]:
    return sorted((folder / "test").rglob("*.png"))


def _expect(run: Path, images: list[Path], preprocessing) -> dict[str, np.ndarray]:
    model, _ = load_checkpoint(run / "checkpoint")
    return run_torch(model, np.stack([load_radiograph(path, preprocessing) for path in images]), batch=16)


def test_the_served_answer_is_that_of_pytorch_for_every_image(triton: str, trained: Path, phantoms: Path) -> None:
    images = _test_images(phantoms)
    with XrayClient(triton) as client:
        answers = list(client.classify_many(images))
        expected = _expect(trained, images, client.preprocessing)
    assert [answer.file for answer in answers] == [str(path) for path in images]
    for i, answer in enumerate(answers):
        assert isinstance(answer, Prediction), answer
        assert answer.finding == FINDINGS[expected["decision"][i, 0]]
        assert answer.probability == pytest.approx(expected["probability"][i, 1], abs=1e-4)
        assert answer.novelty == pytest.approx(expected["novelty"][i, 0], abs=1e-3)
        np.testing.assert_allclose(answer.heatmap, expected["heatmap"][i], atol=1e-3)
        assert answer.model_version == "1"


def test_requests_that_triton_batches_get_the_answers_they_get_alone(triton: str, phantoms: Path) -> None:
    images = _test_images(phantoms)[:24]
    with XrayClient(triton) as client, ThreadPoolExecutor(12) as pool:
        alone = [client.classify(path).probability for path in images]
        together = [answer.probability for answer in pool.map(client.classify, images)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_caller_may_ask_for_some_outputs_while_another_asks_for_others(triton: str) -> None:
    image = np.zeros((1, 1, 224, 224), np.uint8)
    tensor = tritongrpc.InferInput(contract.IMAGE, image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    with tritongrpc.InferenceServerClient(triton) as client, ThreadPoolExecutor(8) as pool:

        def ask(name: str) -> set[str]:
            wanted = [tritongrpc.InferRequestedOutput(name)]
            answer = client.infer(contract.MODEL_NAME, [tensor], outputs=wanted, client_timeout=30).get_response()
            return {output.name for output in answer.outputs}

        names = list(contract.OUTPUTS) * 8
        assert list(pool.map(ask, names)) == [{name} for name in names]


def test_a_batch_in_one_request_and_classification_by_label_work_for_other_clients(triton: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 224, 224), dtype=np.uint8)
    tensor = tritongrpc.InferInput(contract.IMAGE, images.shape, "UINT8")
    tensor.set_data_from_numpy(images)
    top = tritongrpc.InferRequestedOutput(contract.PROBABILITY, class_count=1)
    with tritongrpc.InferenceServerClient(triton) as client:
        answer = client.infer(contract.MODEL_NAME, [tensor], client_timeout=30)
        assert answer.as_numpy(contract.HEATMAP).shape == (5, 7, 7)
        labels = client.infer(contract.MODEL_NAME, [tensor], outputs=[top], client_timeout=30).as_numpy("probability")
    assert {row[0].decode().split(":")[2] for row in labels.reshape(5, -1)} <= {"Normal", "Pneumonia"}


def test_the_command_line_answers_every_file_and_writes_overlays(triton: str, phantoms: Path, tmp_path: Path) -> None:
    images = [str(path) for path in _test_images(phantoms)[:8]]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    options = ["classify", "--url", triton, "--format", "jsonl", "--heatmap-dir", str(tmp_path / "overlays")]
    result = CliRunner().invoke(xray_client, [*options, *images[:4], str(bad), *images[4:]])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 1
    assert [line["file"] for line in lines] == [*images[:4], str(bad), *images[4:]]
    assert [line["file"] for line in lines if line["error"]] == [str(bad)]
    overlays = sorted((tmp_path / "overlays").iterdir())
    assert len(overlays) == 8
    with Image.open(overlays[0]) as picture:
        assert picture.mode == "RGB"


def test_a_version_built_for_another_preprocessing_does_not_load(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "model_repository"))
    manifest = copy / "medclip" / "1" / MANIFEST_FILE
    values = json.loads(manifest.read_text())
    values["preprocessing"]["geometry"] = "stretch"
    manifest.write_text(json.dumps(values))
    with pytest.raises(ServerStartError, match="publish again"), TritonServer(copy, port=0, metrics_port=0):
        pass


def test_the_newest_version_is_served(repository: Path, trained: Path, phantoms: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "model_repository"))
    assert export_and_publish(trained, copy).version == 2
    with TritonServer(copy, port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        assert client.classify(_test_images(phantoms)[0]).model_version == "2"


@pytest.mark.slow
def test_real_radiographs_go_the_whole_way(real_data: Path, tmp_path: Path) -> None:
    """200 Pneumonia and 100 Normal radiographs: a broken pipeline cannot reach this AUROC by patient split."""
    for label, count in (("NORMAL", 100), ("PNEUMONIA", 200)):
        (tmp_path / "data" / "train" / label).mkdir(parents=True)
        files = sorted((real_data / "chest_xray_224" / "train" / label).iterdir())
        for file in files[:: len(files) // count][:count]:
            (tmp_path / "data" / "train" / label / file.name).symlink_to(file)
    options = ["--data", tmp_path / "data", "--out", tmp_path / "runs", "--repository", tmp_path / "repository",
               "--epochs", 1, "--val-fraction", 0.25]  # fmt: skip
    result = CliRunner().invoke(finetune_run, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / "latest"
    after = json.loads((run / "metrics.json").read_text())["metrics"]["val"]["after"]
    assert after["auroc"]["value"] >= 0.90
    images = sorted((tmp_path / "data").rglob("*.jpeg"))
    with TritonServer(tmp_path / "repository", port=0, metrics_port=0) as server, XrayClient(server.url) as client:
        assert client.preprocessing.geometry == "stretch"
        expected = _expect(run, images, client.preprocessing)
        answers = list(client.classify_many(images, heatmap=False))
    served = [answer.finding if isinstance(answer, Prediction) else str(answer) for answer in answers]
    assert served == [FINDINGS[decision] for decision in expected["decision"][:, 0]]
