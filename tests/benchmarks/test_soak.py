"""The soak itself: that it runs, ends when it is told to, and finds what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak import Plan, Soak, drawn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """One that has published its first version and started nothing."""
    return Soak(tmp_path_factory.mktemp("soak"), drawn(3), Plan(1, 1, 1))


def test_an_answer_is_right_for_its_own_picture_its_own_version_and_its_own_preparation_alone(ready: Soak) -> None:
    first, second, *_ = ready.pictures
    (version,) = ready.versions.values()
    right = first.heatmaps[version.geometry] / version.temperature
    assert version.answers(first, right)
    other_way = first.heatmaps[next(name for name in soak.GEOMETRIES if name != version.geometry)]
    for wrong in (
        second.heatmaps[version.geometry] / version.temperature,
        other_way / version.temperature,
        right * version.temperature / (version.temperature + 0.01),
    ):
        assert not version.answers(first, wrong)
        before = len(soak.findings(ready))
        ready._judge_ensemble("ensemble", first, wrong)
        assert "got an answer that is of no version" in soak.findings(ready)[before:][-1]


def test_what_is_lost_or_answered_though_it_is_no_radiograph_is_found(ready: Soak) -> None:
    bad = ready.pictures[-1]
    ready.ledger.ask("some", 2)
    ready.ledger.note("some", "answered")
    assert "some: 1 lost" in soak.findings(ready)
    ready._judge_ensemble("ensemble", bad, ready.pictures[0].heatmaps["pad"])
    assert soak.findings(ready)[-1].startswith(f"ensemble: {bad.name} got an answer")
    ready._judge_refusal("ensemble", ready.pictures[0], "INVALID_ARGUMENT", "the image: ...")
    assert "was refused" in soak.findings(ready)[-1]


@pytest.mark.parametrize(("slope", "found"), [(0.0, False), (0.01, False), (0.5, True)])
def test_memory_that_grows_is_found_and_memory_that_swings_is_not(ready: Soak, slope: float, found: bool) -> None:
    ready.samples = soak.Samples()
    for second in range(0, 600, 5):
        ready.samples.add(second, {"tritonserver, MB": 200 + slope * second + 30 * (second % 2)})
    assert any("tritonserver, MB: grew" in finding for finding in soak.findings(ready)) is found


@pytest.mark.slow
def test_twenty_seconds_of_it_lose_nothing_and_ctrl_c_gives_the_report_so_far(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes=10", "--publish-every=4", "--kill-every=7"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, f"--out={tmp_path}"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    # Until both servers have started it would be no soak.
    deadline = time.monotonic() + 120
    while not (tmp_path / "mortal.log").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(20)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "interrupted: the report so far" in said
    assert "0 findings" in said
    record = json.loads((tmp_path / "soak.json").read_text())
    for caller in ("direct, stat", "direct, routine", "ensemble"):
        assert record["outcomes"][caller]["answered"] > 20
        assert record["outcomes"][caller]["refused"] > 5
    assert record["outcomes"]["publications"]["done"] >= 2
    assert record["outcomes"]["servers killed"]["back"] >= 1
    assert (tmp_path / "soak.png").stat().st_size > 1000
