"""A search goes on where it stopped, several may work on it, and its best settings are what finetune.run takes."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from optuna.trial import TrialState
from PIL import Image

from finetune.run import main as run
from finetune.settings import TrainSettings
from finetune.tune import main, open_study, write_summary


def _search(phantoms: Path, cache: Path, out: Path, *more: object) -> str:
    options = ["--data", phantoms, "--cache", cache, "--out", out, "--epochs", 1, "--head-epochs", 2, *more]
    result = CliRunner().invoke(main, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_a_search_goes_on_and_its_best_settings_start_a_run(phantoms: Path, trained: Path, tmp_path: Path) -> None:
    cache, out = trained.parent / "cache", tmp_path / "search"
    _search(phantoms, cache, out, "--trials", 1)
    first = open_study(out).trials
    assert [trial.params["learning_rate"] for trial in first] == [TrainSettings().learning_rate], "defaults come first"
    _search(phantoms, cache, out, "--trials", 2)
    trials = open_study(out).trials
    assert len(trials) == 2
    assert trials[0].value == first[0].value
    with (out / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    with Image.open(out / "history.png") as picture:
        assert min(picture.size) > 300
    best = json.loads((out / "best.json").read_text())
    options = ["--data", phantoms, "--cache", cache, "--out", tmp_path / "runs", "--config", out / "best.json",
               "--epochs", 0, "--head-epochs", 1, "--no-publish"]  # fmt: skip
    result = CliRunner().invoke(run, [str(option) for option in options])
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "runs" / "latest" / "settings.json").read_text())
    assert settings == {**settings, **best}


def test_what_a_killed_process_was_working_on_is_tried_again(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    study = open_study(tmp_path)
    mine, theirs = study.ask(), study.ask()
    for trial, process in ((mine, os.getpid()), (theirs, dead.pid)):
        trial.suggest_float("dropout", 0.0, 0.5)
        trial.set_user_attr("host", socket.gethostname())
        trial.set_user_attr("process", process)
    states = [trial.state for trial in open_study(tmp_path).trials]
    assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]
    again = open_study(tmp_path).ask()
    assert again.suggest_float("dropout", 0.0, 0.5) == theirs.params["dropout"]


def test_a_search_over_other_data_is_not_mixed_in(phantoms: Path, tmp_path: Path) -> None:
    open_study(tmp_path).set_user_attr("judged_by", {"data": "elsewhere", "epochs": 1})
    result = CliRunner().invoke(main, ["--data", str(phantoms), "--out", str(tmp_path), "--epochs", "1"])
    assert result.exit_code == 1
    assert "started differently: data was elsewhere" in result.output


def test_a_search_without_a_complete_trial_has_no_best_settings(tmp_path: Path) -> None:
    write_summary(open_study(tmp_path), TrainSettings(), tmp_path)
    assert not (tmp_path / "best.json").exists()
