"""The soak itself: that it runs, ends when it is told to, and finds what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import Plan, Soak
from benchmarks.soak_ledger import Samples
from benchmarks.soak_pictures import drawn
from benchmarks.soak_report import faults_of
from tests.helpers.gates import wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """One that has published its first version and started nothing."""
    return Soak(tmp_path_factory.mktemp("soak"), drawn(3), Plan(1, 1, 1))


def faults(soak: Soak) -> list[str]:
    return faults_of(soak.ledger, soak.samples)


def test_an_answer_is_right_for_its_own_picture_and_its_own_version_alone(ready: Soak) -> None:
    first, second, *_ = ready.pictures
    (temperature,) = ready.temperatures.values()
    assert first.heatmap is not None
    assert second.heatmap is not None
    right = first.heatmap / temperature
    assert first.matches(right, temperature)
    for wrong in (second.heatmap / temperature, right * temperature / (temperature + 0.01)):
        assert not first.matches(wrong, temperature)
        before = len(faults(ready))
        ready.check_ensemble_answer("ensemble", first, wrong)
        assert "got an answer that is of no version" in faults(ready)[before:][-1]


def test_a_lost_request_and_an_answer_to_what_is_no_radiograph_are_faults(ready: Soak) -> None:
    good, *_, bad = ready.pictures
    assert good.heatmap is not None
    ready.ledger.ask("some", 2)
    ready.ledger.note("some", "answered")
    assert "some: 1 lost" in faults(ready)
    ready.check_ensemble_answer("ensemble", bad, good.heatmap)
    assert faults(ready)[-1].startswith(f"ensemble: {bad.name} got an answer")
    ready.check_ensemble_error("ensemble", good, "INVALID_ARGUMENT", "the image: ...")
    assert "was refused" in faults(ready)[-1]


@pytest.mark.parametrize(("slope", "found"), [(0.0, False), (0.01, False), (0.5, True)])
def test_memory_that_grows_is_found_and_memory_that_swings_is_not(ready: Soak, slope: float, found: bool) -> None:
    ready.samples = Samples()
    for second in range(0, 600, 5):
        ready.samples.add(second, {"tritonserver, MB": 200 + slope * second + 30 * (second % 2)})
    assert any("tritonserver, MB: grew" in fault for fault in faults(ready)) is found


def underway(out: Path) -> bool:
    """Three publications and rollbacks, and the second server is up again after it was killed."""
    log = out / "restarted.log"
    starts = log.read_text(errors="replace").count("Started GRPCInferenceService") if log.exists() else 0
    return starts >= 2 and len(list((out / "model_repository" / "medclip").glob("[0-9]*"))) >= 3


@pytest.mark.slow
def test_a_soak_loses_nothing_and_ctrl_c_gives_the_report_so_far(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes=10", "--publish-every=2", "--kill-every=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, f"--out={tmp_path}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: process.poll() is not None or underway(tmp_path), seconds=300)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "interrupted: the report so far" in said
    assert "0 faults" in said
    outcomes = json.loads((tmp_path / "soak.json").read_text())["outcomes"]
    for caller in ("direct, stat", "direct, routine", "ensemble"):
        assert outcomes[caller]["answered"] > 20
        assert outcomes[caller]["refused"] > 5
    assert outcomes["publications"]["done"] >= 2
    assert outcomes["servers killed"]["back"] >= 1
    assert (tmp_path / "soak.png").stat().st_size > 1000
