"""`make bench`: the real perf_analyzer and the project's own client against the real Triton, briefly."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from benchmarks.load import FIELDS, QUICK, UNBATCHED, URGENT, main
from benchmarks.load_settings import AS_CONFIGURED, BenchError, Published, Setting
from benchmarks.perf_analyzer import PerfAnalyzer, PerfAnalyzerError, is_fetched, program_path, write_input
from finetune.phantom import draw_phantom
from tests.helpers.gates import wait_until
from tests.helpers.small_graph import publish_small
from xray_build.artefacts import ONNX_FILE
from xray_build.repository.pbtxt import parse_config
from xray_client import RESEARCH_USE


@pytest.fixture(scope="module")
def analyzer() -> None:
    """Tests that run it are skipped where it has not been fetched."""
    if not is_fetched():
        pytest.skip(f"no perf_analyzer at {program_path()}: python -m benchmarks.perf_analyzer")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "images"
    folder.mkdir()
    for number in range(4):
        drawn = draw_phantom(0, number, pneumonia=number % 2 == 1, patient=number)
        Image.fromarray(drawn).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("bench") / "repository"
    publish_small(repository)
    return repository


def bench(*options: object) -> Result:
    return CliRunner().invoke(main, [str(option) for option in ("--quick", "--no-vit", *options)])


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "serving.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(repository: Path) -> dict[Path, bytes]:
    """All but what Python itself keeps beside a model's code."""
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file() and path.suffix != ".pyc"}


@pytest.mark.slow
@pytest.mark.usefixtures("analyzer")
def test_a_quick_run_measures_all_four_parts_and_leaves_the_repository_alone(
    small: Path, images: Path, tmp_path: Path
) -> None:
    before = files_of(small)
    result = bench("--repository", small, "--images", images, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert files_of(small) == before

    rows = rows_of(tmp_path)
    assert list(rows[0]) == FIELDS
    points = {(row["part"], row["setting"], row["model"], row["batch"], row["concurrency"]) for row in rows}
    ladders = {("1", "1"), ("1", "4"), ("8", "1")}
    for setting in (AS_CONFIGURED, UNBATCHED):
        for model in ("medclip", "xray_classifier"):
            assert {point[3:] for point in points if point[:3] == ("ladder", setting.name, model)} == ladders
    assert {point[1] for point in points if point[0] == "settings"} == {"as configured", QUICK.others[0].name}
    measured = [row for row in rows if not row["failed"]]
    # A busy machine may answer nothing in one of the short windows; a request that fails is another matter.
    assert all("No valid requests recorded" in row["failed"] for row in rows if row["failed"])
    assert len(measured) > len(rows) / 2
    assert all(float(row["p99_ms"]) >= float(row["p50_ms"]) > 0 < float(row["images_a_second"]) for row in measured)
    assert all(float(row["engine_batch"]) == 8 for row in measured if row["batch"] == "8" and row["concurrency"] == "1")

    report = json.loads((tmp_path / "serving.json").read_text())
    saturated = report["saturated"][0]
    assert saturated["memory_mib"] > 100
    for taken in (saturated["images_a_second"], saturated["processor_ms"]):
        assert taken.keys() == {"served", "alone, 1", "alone, 4"}
        assert all(len(values) == QUICK.rounds and min(values) > 0 for values in taken.values())
    assert [entry["setting"] for entry in report["urgent"]] == [setting.name for setting in URGENT]
    assert all(entry["stat_ms"] and 1 <= entry["images_a_batch"] <= 32 for entry in report["urgent"])
    assert report["urgent"][0]["images_a_batch"] <= 4
    killed = report["servers"]["killed"]
    assert killed["answered"] == killed["asked"] > 0
    text = (tmp_path / "serving.md").read_text()
    assert all(
        title in text for title in ("**Load**", "**Settings", "**Saturated", "**STAT", "**Several", RESEARCH_USE)
    )
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 5
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    with Image.open(tmp_path / "serving.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
@pytest.mark.usefixtures("analyzer")
def test_an_interrupted_run_keeps_the_points_that_it_has_and_ends_its_server(
    small: Path, images: Path, tmp_path: Path
) -> None:
    options = ["--no-vit", "--parts", "load", "--repository", small, "--images", images, "--out", tmp_path]
    command = [sys.executable, "-m", "benchmarks.load", *map(str, options)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        wait_until(lambda: process.poll() is not None or (tmp_path / "serving.csv").exists(), 120)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted; what was measured is in" in said
    assert 1 <= len(rows_of(tmp_path)) < 10
    assert "**Load**" in (tmp_path / "serving.md").read_text()
    assert "Traceback" not in said


@pytest.mark.usefixtures("analyzer")
def test_a_server_that_does_not_start_ends_the_run_with_its_reason(images: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    publish_small(repository)
    (repository / "medclip" / "1" / ONNX_FILE).write_bytes(b"no graph")
    result = bench("--repository", repository, "--images", images, "--out", tmp_path / "out", "--parts", "load")
    assert result.exit_code == 1
    # Whichever of Triton's lines about it came first.
    assert re.search("InvalidProtobuf|failed to load", result.output)
    assert "server.log" in result.output
    assert (tmp_path / "out" / "server.log").exists()


@pytest.mark.usefixtures("analyzer")
def test_a_request_that_is_refused_is_an_error_in_tritons_words(small: Path, tmp_path: Path) -> None:
    write_input(tmp_path / "input.json", "image", [b"too short"])
    with (
        Published.find("small", small).served_as(AS_CONFIGURED, tmp_path / "log", models=["medclip"]) as server,
        PerfAnalyzer.ready() as ready,
        pytest.raises(PerfAnalyzerError, match=r"50176|byte size|mismatch"),
    ):
        ready.measure(server.url, "medclip", tmp_path / "input.json", window_s=0.4)


def test_a_setting_changes_what_it_names_and_nothing_else(small: Path, tmp_path: Path) -> None:
    published = Published.find("small", small)
    published.lay_out(AS_CONFIGURED, tmp_path / "same")
    file = Path("medclip") / "configs" / "embedded.pbtxt"
    same = parse_config((tmp_path / "same" / file).read_text())
    assert same == parse_config((small / file).read_text())

    published.lay_out(Setting("other", {"instances": 3, "threads": 5, "queue_delay_us": 70}), tmp_path / "other")
    other = parse_config((tmp_path / "other" / file).read_text())
    assert other.parameters["threads"].string_value == "5"
    assert (other.instance_group[0].count, other.dynamic_batching.max_queue_delay_microseconds) == (3, 70)
    other.parameters["threads"].string_value = same.parameters["threads"].string_value
    other.instance_group[0].count = same.instance_group[0].count
    other.dynamic_batching.max_queue_delay_microseconds = same.dynamic_batching.max_queue_delay_microseconds
    assert other == same

    published.lay_out(UNBATCHED, tmp_path / "unbatched")
    unbatched = parse_config((tmp_path / "unbatched" / file).read_text())
    assert not unbatched.HasField("dynamic_batching")
    assert unbatched.max_batch_size == same.max_batch_size


def test_an_empty_repository_has_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no published version"):
        Published.find("none", tmp_path)


def test_a_part_that_does_not_exist_is_named(images: Path) -> None:
    result = bench("--images", images, "--parts", "load,everything")
    assert result.exit_code == 2
    assert "'everything' is none of load, saturated, urgent, servers" in result.output
