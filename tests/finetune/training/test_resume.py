"""Training itself: it goes on after an interruption as if nothing had happened, alone or with others."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from safetensors.torch import load_file

from finetune.run import main
from finetune.training.staging import LOCK_FILE
from tests.helpers.gates import wait_until

OPTIONS = ["--epochs", 2, "--head-epochs", 3, "--val-fraction", 0.3, "--average", 0.9, "--no-publish"]


@pytest.fixture(scope="module")
def few(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every third phantom, no test part: enough to compare runs with each other. Names are in no encoding."""
    folder = tmp_path_factory.mktemp("few") / os.fsdecode(b"M\xfcller")
    for label in ("NORMAL", "PNEUMONIA"):
        (folder / label).mkdir(parents=True)
        for file in sorted((phantoms / "train" / label).iterdir())[::3]:
            (folder / label / os.fsdecode(b"\xfc-" + os.fsencode(file.name))).symlink_to(file)
    return folder


def _command(data: Path, out: Path, *more: object) -> list[str]:
    words = [sys.executable, "-m", "finetune.run", "--data", data, "--out", out, *OPTIONS, *more]
    return [str(word) for word in words]


def _run(command: list[str]) -> Path:
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    return (Path(command[command.index("--out") + 1]) / "latest").resolve()


def _curves(run: Path) -> list[dict[str, float]]:
    with (run / "curves" / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def cache(trained: Path) -> Path:
    """Decoded phantoms of the session."""
    return trained.parent / "cache"


@pytest.fixture(scope="module")
def uninterrupted(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs that nothing disturbed."""
    return _run(_command(few, tmp_path_factory.mktemp("uninterrupted")))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_same_result(
    uninterrupted: Path, few: Path, tmp_path: Path, number: signal.Signals
) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(_command(few, tmp_path), stderr=subprocess.PIPE, text=True, env=environment)
    wait_until(lambda: process.poll() is not None or list(tmp_path.glob("*.partial/resume/last.ckpt")), 300)
    assert process.poll() is None, "it ended before it could be interrupted"
    process.send_signal(number)
    process.communicate(timeout=60)
    (partial,) = tmp_path.glob("*.partial")
    resumed = subprocess.run(
        [sys.executable, "-m", "finetune.run", "--resume", str(partial)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stderr
    run = (tmp_path / "latest").resolve()
    assert not list(tmp_path.glob("*.partial"))
    assert not (run / "resume").exists()
    assert _curves(run) == _curves(uninterrupted)
    expected = load_file(uninterrupted / "checkpoint" / "model.safetensors")
    for name, tensor in load_file(run / "checkpoint" / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_two_processes_reach_the_metrics_of_one(few: Path, tmp_path: Path) -> None:
    # Without dropout, which draws differently in each process, only the order of sums differs.
    alike = ["--dropout", 0, "--precision", 32]
    alone = _run(_command(few, tmp_path / "one", *alike))
    together = _run(_command(few, tmp_path / "two", *alike, "--devices", 2))
    for mine, theirs in zip(_curves(together), _curves(alone), strict=True):
        assert mine["val_auroc"] == pytest.approx(theirs["val_auroc"], abs=0.02)
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], rel=0.02)
    assert len(list((tmp_path / "two").glob("20*"))) == 1, "one run folder, not one for each process"
    assert not list((tmp_path / "two").glob("*.partial"))


def test_a_run_can_be_repeated_from_its_settings(trained: Path, phantoms: Path, cache: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["--config", str(trained), "--out", str(tmp_path), "--cache", str(cache), "--epochs", "0"]
    )
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "latest" / "settings.json").read_text())
    first = json.loads((trained / "settings.json").read_text())
    changed = {name for name, value in settings.items() if first[name] != value}
    assert changed == {"out", "cache", "epochs"}


@pytest.mark.parametrize("text", ["no json", '{"speed": 3}'])
def test_settings_that_are_not_understood_are_refused(phantoms: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    result = CliRunner().invoke(main, ["--data", str(phantoms), "--config", str(tmp_path / "settings.json")])
    assert result.exit_code == 2
    assert "settings.json" in result.output


def test_a_run_that_is_still_under_way_is_not_resumed(phantoms: Path, tmp_path: Path) -> None:
    under_way = tmp_path / "2026-01-31T12-00-00-1.partial"
    (under_way / "resume").mkdir(parents=True)
    (under_way / "settings.json").write_text(json.dumps({"data": str(phantoms)}))
    with FileLock(under_way / "resume" / LOCK_FILE):
        result = CliRunner().invoke(main, ["--resume", str(under_way)])
    assert result.exit_code == 1
    assert "still under way" in result.output
    assert (under_way / "settings.json").is_file(), "nothing of it is touched"


def test_what_is_not_an_interrupted_run_is_not_resumed(trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    result = CliRunner().invoke(main, ["--resume", str(trained)])
    assert result.exit_code == 1
    assert "holds no interrupted run" in result.output
    assert sorted(trained.rglob("*")) == before
