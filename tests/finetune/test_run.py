"""`python -m finetune.run`, from the command line."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from finetune.models.checkpoint import load_checkpoint, save_checkpoint
from finetune.run import main


def _run(*options: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(option) for option in options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_a_run_folder_is_complete(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {
        "checkpoint", "metrics.json", "settings.json", "environment.json", "splits.csv", "left_out.csv",
        "curves", "curves.png", "augmentation.png",
        "roc_val.png", "roc_test.png", "confusion_val.png", "confusion_test.png",
    }  # fmt: skip
    assert (trained.parent / "latest").resolve() == trained
    for picture in trained.glob("*.png"):
        with Image.open(picture) as image:
            assert min(image.size) > 300
    metrics = json.loads((trained / "metrics.json").read_text())
    for split in ("val", "test"):
        for stage in ("before", "head_only", "after"):
            for name in ("accuracy", "sensitivity", "specificity", "auroc"):
                figure = metrics["metrics"][split][stage][name]
                assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1


def test_the_split_is_written_down_and_no_patient_is_on_two_sides(trained: Path) -> None:
    with (trained / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    sides = {split: {row["patient"] for row in rows if row["split"] == split} for split in ("train", "val", "test")}
    assert all(sides.values())
    assert not sides["train"] & sides["val"]
    assert not sides["test"] & (sides["train"] | sides["val"])


def test_the_operating_point_keeps_the_sensitivity_that_was_asked_for(trained: Path) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["metrics"]["val"]["after"]["sensitivity"]["value"] >= metrics["decision"]["sensitivity_asked"]


def test_no_epochs_at_all_is_the_zero_shot_model(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    code, output = _run("--data", phantoms, "--out", tmp_path, "--cache", trained.parent / "cache",
                        "--epochs", 0, "--head-epochs", 0, "--no-publish")  # fmt: skip
    assert code == 0, output
    metrics = json.loads((tmp_path / "latest" / "metrics.json").read_text())["metrics"]["val"]
    assert set(metrics) == {"before", "after"}
    assert metrics["before"]["auroc"] == metrics["after"]["auroc"]
    load_checkpoint(tmp_path / "latest" / "checkpoint")


def test_a_run_starts_from_the_mean_of_others(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    model, about = load_checkpoint(trained / "checkpoint")
    before = {name: tensor.clone() for name, tensor in model.classifier.state_dict().items()}
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(1.02)
    save_checkpoint(model, other, about)
    code, output = _run("--data", phantoms, "--out", tmp_path / "runs", "--cache", trained.parent / "cache",
                        "--start", trained, "--start", other, "--seed", 7,
                        "--epochs", 0, "--head-epochs", 0, "--no-publish")  # fmt: skip
    assert code == 0, output
    run = tmp_path / "runs" / "latest"
    for name, tensor in load_checkpoint(run / "checkpoint")[0].classifier.named_parameters():
        torch.testing.assert_close(tensor, before[name] * 1.01)
    metrics = json.loads((run / "metrics.json").read_text())
    assert [start["model.safetensors"] for start in metrics["start"]] == [
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        for folder in (trained / "checkpoint", other)
    ]
    assert metrics["zero_shot_seed"] == 0
    zero_shot = json.loads((trained / "metrics.json").read_text())["metrics"]["val"]["before"]["auroc"]["value"]
    assert metrics["metrics"]["val"]["before"]["auroc"]["value"] > zero_shot, "before is what it starts from"


def test_a_start_of_another_network_is_refused(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    code, output = _run("--data", phantoms, "--out", tmp_path, "--cache", trained.parent / "cache",
                        "--model", "medclip-resnet", "--weights", "random", "--start", trained)  # fmt: skip
    assert code == 1
    assert "it is medclip-lite of width 512, not medclip-resnet" in output


@pytest.mark.parametrize("case", ["missing", "empty", "one class", "unreadable"])
def test_bad_data_is_one_clear_line_and_leaves_nothing_behind(tmp_path: Path, case: str) -> None:
    data, out = tmp_path / "data", tmp_path / "runs"
    if case != "missing":
        (data / "train" / "NORMAL").mkdir(parents=True)
    if case in ("one class", "unreadable"):
        Image.new("L", (30, 30)).save(data / "train" / "NORMAL" / "a.png")
    if case == "unreadable":
        (data / "train" / "PNEUMONIA").mkdir()
        (data / "train" / "PNEUMONIA" / "b.png").write_bytes(b"no image")
    code, output = _run("--data", data, "--out", out)
    assert code == 1
    assert output.startswith("Error: ") or "\nError: " in output
    assert str(data) in output
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert not any(path.name.endswith(".partial") for path in out.iterdir())


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_folder_that_cannot_be_written_is_one_clear_line(phantoms: Path, tmp_path: Path, option: str) -> None:
    given = {"--out": tmp_path, "--cache": tmp_path / "cache", option: "/proc/none"}
    code, output = _run("--data", phantoms, *(word for pair in given.items() for word in pair))
    assert code == 1
    assert re.search(r"^Error: /proc/none.*: No such file or directory$", output, re.M)


def test_help_loads_no_torch_and_names_the_value_that_turns_an_option_off() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "finetune.run", "--help"], capture_output=True, text=True
    )
    assert "(0 = off)" in done.stdout
    assert " torch" not in done.stderr, "help does not wait for torch"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_only_decoded_images(phantoms: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "finetune.run", "--data", str(phantoms), "--out", str(tmp_path / "runs"),
               "--epochs", "50", "--head-epochs", "2"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("head trained"):
            break
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(timeout=60) != 0
    assert "Traceback" not in rest
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["cache"]
