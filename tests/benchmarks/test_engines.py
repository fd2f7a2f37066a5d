"""The benchmark of engines over a real build, briefly: what it writes, not what it measures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks.engines import main
from benchmarks.engines_report import ENGINES
from tests.helpers.commands import Built

pytestmark = pytest.mark.slow


def bench(images: Path, out: Path, *more: str) -> Result:
    """The command line, on what was built already."""
    brief = ["--count", "4", "--calls", "3", "--rounds", "1", "--reuse"]
    return CliRunner().invoke(main, ["--images", str(images), "--out", str(out), *brief, *more])


def test_every_engine_of_a_build_is_timed_and_reported(built: Built, twenty_radiographs: Path, tmp_path: Path) -> None:
    shutil.copytree(built.folder, tmp_path / "out" / "medclip-lite")
    result = bench(twenty_radiographs, tmp_path / "out", "--models", "medclip-lite", "--clock", "cpu")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out" / "engines.json").read_text())
    measured = report["models"]["medclip-lite"]
    assert report["machine"]["clock"] == "cpu"
    assert set(measured["latency_ms"]) == set(measured["throughput"]) == set(ENGINES)
    table = (tmp_path / "out" / "engines.md").read_text()
    for engine in ENGINES:
        p50, p95 = measured["latency_ms"][engine]
        assert 0 < p50 <= p95
        ratio = measured["latency_ms"]["PyTorch"][0] / p50
        assert f"| medclip-lite | {engine} | {p50:.1f} ({p95:.1f}) | {ratio:.2f} |" in table
    assert all(rate > 0 for rate in measured["instances"].values())
    # A step of less than a second is not a step of no time.
    assert all(step["seconds"] > 0 for step in measured["build"]["steps"])
    assert not [line for line in table.splitlines() if "TensorRT-RTX | 0 |" in line]
    with Image.open(tmp_path / "out" / "engines.png") as picture:
        assert picture.width > 600


def test_an_unknown_network_is_named(twenty_radiographs: Path, tmp_path: Path) -> None:
    result = bench(twenty_radiographs, tmp_path / "out", "--models", "medclip-huge")
    assert result.exit_code == 2
    assert "'medclip-huge' is none of medclip-lite, medclip-vit, medclip-resnet" in result.output
