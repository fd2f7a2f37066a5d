"""Input of perf_analyzer and reading of its output; the outputs here are its own, of release 2.51."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from benchmarks.perf_analyzer import PerfAnalyzer, PerfAnalyzerError, fetch, parse, program_path, write_input
from xray_client import contract

TABLE = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
    "Avg latency,request/response,response wait\n"
    "4,1215.21,35,4920,13833,173,6601,543,2,11884,33531,45737,511347,26110,37,26030\n"
)
DIRECT = """
  Pass [1] throughput: 1220.0 infer/sec. Avg latency: 26000 usec (std 64037 usec).
  Pass [2] throughput: 1200.0 infer/sec. Avg latency: 26100 usec (std 78275 usec).
  Pass [3] throughput: 1210.0 infer/sec. Avg latency: 27300 usec (std 81664 usec).
  Server:
    Inference count: 4392
    Execution count: 242
    Successful request count: 549
"""
ENSEMBLE = """
  Pass [1] throughput: 73.3 infer/sec. Avg latency: 187223 usec (std 65768 usec).
  Pass [2] throughput: 66.2 infer/sec. Avg latency: 250747 usec (std 80409 usec).
  Pass [3] throughput: 53.2 infer/sec. Avg latency: 265616 usec (std 112654 usec).
  Server:
    Inference count: 232
    Execution count: 29
  Composing models:
  medclip, version: 1
      Inference count: 232
      Execution count: 116
  xray_decode, version: 1
      Inference count: 232
      Execution count: 23
"""


def test_times_are_milliseconds_and_throughput_is_images() -> None:
    measured = parse(TABLE, DIRECT)
    assert measured.images_a_second == 1215.21
    assert (measured.p50_ms, measured.p90_ms, measured.p95_ms, measured.p99_ms) == (11.884, 33.531, 45.737, 511.347)
    assert (measured.queue_ms, measured.compute_ms) == (13.833, pytest.approx(7.317))


def test_the_engines_batch_is_that_of_medclip_also_behind_the_ensemble() -> None:
    assert parse(TABLE, DIRECT).engine_batch == pytest.approx(4392 / 242)
    assert parse(TABLE, ENSEMBLE).engine_batch == 2


def test_windows_more_than_a_tenth_apart_are_not_stable() -> None:
    assert parse(TABLE, DIRECT).stable
    measured = parse(TABLE, ENSEMBLE)
    assert not measured.stable
    assert measured.spread == pytest.approx(265616 / 187223 - 1)


@pytest.mark.parametrize("table", ["", TABLE.splitlines()[0], TABLE.replace("p99 latency", "p98 latency"), "a\nb\n"])
def test_what_is_no_table_of_its_own_is_refused(table: str) -> None:
    with pytest.raises(PerfAnalyzerError, match="no table"):
        parse(table, DIRECT)


def test_pixels_are_sent_as_they_are_and_files_with_their_length_before_them(tmp_path: Path) -> None:
    path = tmp_path / "input.json"
    values = [b"\x00\x01\xff", b"second"]
    write_input(path, contract.IMAGE, values)
    steps = json.loads(path.read_text())["data"]
    assert [base64.b64decode(step["image"]["b64"]) for step in steps] == values
    write_input(path, contract.ENCODED, values)
    steps = json.loads(path.read_text())["data"]
    assert base64.b64decode(steps[0]["encoded"]["b64"]) == b"\x03\x00\x00\x00\x00\x01\xff"
    assert base64.b64decode(steps[1]["encoded"]["b64"]) == b"\x06\x00\x00\x00second"


def test_a_program_that_is_not_the_one_meant_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program_path().parent.mkdir(parents=True)
    program_path().write_text("#!/bin/sh\necho I am another\n")
    program_path().chmod(0o755)
    with (
        pytest.raises(PerfAnalyzerError, match=r"not been fetched .*python -m benchmarks\.perf_analyzer"),
        PerfAnalyzer.ready(),
    ):
        pass


def test_without_a_package_index_the_error_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PerfAnalyzerError, match=r"tritonclient==2\.51\.0: cannot be downloaded: .*once"):
        fetch()
    assert not program_path().exists()
