"""NVIDIA's perf_analyzer: fetching the program, its input, running it, reading its output.

    python -m benchmarks.perf_analyzer        # fetch it, once

The package of that name on PyPI needs a newer glibc than most machines have. The last wheel of tritonclient that holds
the program, 2.51.0, runs anywhere the local server does; only the program is taken out of it, into a folder of its own
below the user's cache, and the installed tritonclient stays what it is. Two libraries that it wants come with the local
server's wheel.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from xray_build.triton.process import TritonWheel
from xray_client import XrayError, contract
from xray_client.console import plain_errors
from xray_client.files import sha256, write_atomically

WHEEL = "tritonclient==2.51.0"
WHEEL_SHA256 = "c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52"
PROGRAM_SHA256 = "a8e3fa6d2fcd535770f18fa3c9baf21aee85697352637d24c6b2818401c95a34"
_MEMBER = "tritonclient-2.51.0.data/data/bin/perf_analyzer"
# The names that it looks for, and what they are called in the server's wheel.
_LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}

WINDOWS = 3  # that perf_analyzer compares with one another and reports together
STABLE_WITHIN = 0.1  # its own default
_ANY_SPREAD = "1000000"  # %: with less it would throw away what it has measured on a busy machine
_SPARE_S = 60.0  # beyond the windows: it reads its input, begins, and waits for what is in flight
_PROXIES = {"http_proxy", "https_proxy", "grpc_proxy", "all_proxy"}


class PerfAnalyzerError(XrayError):
    """perf_analyzer has not been fetched, or measured nothing; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurement by perf_analyzer with one number of requests in flight.

    Attributes:
        images_a_second: Answered, requests times batch.
        p50_ms, p90_ms, p95_ms, p99_ms: Milliseconds from sending a request to its answer.
        queue_ms, compute_ms: Mean of a request's time inside the server; of an ensemble, of its models together.
        engine_batch: Images that the engine of `medclip` was given at a time, on average; 0 = it does not say.
        spread: Largest over smallest of its windows, less 1: throughput or mean latency, whichever is more.
    """

    images_a_second: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    queue_ms: float
    compute_ms: float
    engine_batch: float
    spread: float

    @property
    def stable(self) -> bool:
        """Tell whether perf_analyzer, with its defaults, would have called this measurement stable."""
        return self.spread <= STABLE_WITHIN


def program_path() -> Path:
    """Path of the program, fetched or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "medclip-triton" / "perf_analyzer-2.51.0" / "perf_analyzer"


def is_fetched() -> bool:
    """Tell whether the program has been fetched and has the expected checksum."""
    path = program_path()
    return path.is_file() and sha256(path) == PROGRAM_SHA256


def fetch() -> Path:
    """Fetch the program by pip, 14 MB, unless it is there already.

    Raises:
        PerfAnalyzerError: The wheel cannot be downloaded, or its checksum is wrong.
    """
    path = program_path()
    if is_fetched():
        return path
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64"]
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as folder:
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, WHEEL]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.strip().splitlines()
            raise PerfAnalyzerError(
                f"cannot be downloaded: {said[-1] if said else 'pip brought nothing'}",
                source=WHEEL,
                remedy="a network with a package index, once",
            )
        if sha256(wheels[0]) != WHEEL_SHA256:
            raise PerfAnalyzerError("wheel checksum mismatch", source=WHEEL, remedy="check the index")
        with zipfile.ZipFile(wheels[0]) as wheel:
            program = wheel.read(_MEMBER)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, program)
    path.chmod(0o755)
    return path


def write_input(path: Path, tensor: str, values: Sequence[bytes]) -> None:
    """Write perf_analyzer's `--input-data`, one step a value.

    Args:
        path: JSON file.
        tensor: Name of the input.
        values: For `image` the pixels, for `encoded` the bytes of a file.
    """
    if tensor == contract.ENCODED:
        # perf_analyzer sends base64 as it is, and Triton expects every string with its length before it.
        values = [len(value).to_bytes(4, "little") + value for value in values]
    steps = [{tensor: {"b64": base64.b64encode(value).decode()}} for value in values]
    path.write_text(json.dumps({"data": steps}))


def parse(table: str, said: str) -> Measured:
    """Read perf_analyzer's report (`-f`, `--verbose-csv`) and its output (`-v`).

    Raises:
        PerfAnalyzerError: They hold no measurement.
    """
    try:
        row = {name: float(value or 0) for name, value in next(csv.DictReader(io.StringIO(table))).items()}
        queue = row["Server Queue"]
        compute = sum(row[f"Server Compute {part}"] for part in ("Input", "Infer", "Output"))
        p50, p90, p95, p99 = (row[f"p{percent} latency"] / 1000 for percent in (50, 90, 95, 99))
        rate = row["Inferences/Second"]
    except (StopIteration, KeyError, ValueError, TypeError) as err:
        raise PerfAnalyzerError("perf_analyzer wrote no table that is understood", source=table[:200]) from err
    passes = re.findall(r"Pass \[\d+\] throughput: (\S+) infer/sec\. Avg latency: (\d+) usec", said)[-WINDOWS:]
    spread = max((_spread([float(value) for value in column]) for column in zip(*passes, strict=True)), default=0.0)
    return Measured(rate, p50, p90, p95, p99, queue / 1000, compute / 1000, _engine_batch(said), spread)


def _spread(values: Sequence[float]) -> float:
    return max(values) / max(min(values), 1e-9) - 1


def _engine_batch(said: str) -> float:
    """Mean batch of `medclip` itself, also in the output about an ensemble."""
    own = said.rpartition(f"{contract.MODEL_NAME}, version:")[2]
    counts = re.search(r"Inference count: (\d+)\s+Execution count: (\d+)", own)
    return int(counts[1]) / max(1, int(counts[2])) if counts else 0.0


@dataclass(frozen=True)
class PerfAnalyzer:
    """The program, ready to run.

    Args:
        program: The file.
        libraries: Folder of the libraries that it wants, and of its reports.
    """

    program: Path
    libraries: Path

    @staticmethod
    @contextmanager
    def ready() -> Iterator[PerfAnalyzer]:
        """The program with its libraries.

        Raises:
            PerfAnalyzerError: The program has not been fetched.
            ServerStartError: The local server, whose libraries it uses, is not installed.
        """
        if not is_fetched():
            raise PerfAnalyzerError("perf_analyzer has not been fetched", remedy="python -m benchmarks.perf_analyzer")
        wheel = TritonWheel.find()
        with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as folder:
            for name, pattern in _LIBRARIES.items():
                (Path(folder) / name).symlink_to(next(wheel.libraries.glob(pattern)))
            yield PerfAnalyzer(program_path(), Path(folder))

    def measure(
        self, url: str, model: str, data: Path, *, batch: int = 1, concurrency: int = 1, window_s: float = 1.5
    ) -> Measured:
        """Send requests, always so many in flight, and measure over `WINDOWS` windows.

        Args:
            url: Of the server, host:port.
            model: `medclip` or `xray_classifier`.
            data: Written by `write_input`.
            batch: Images a request.
            concurrency: Requests in flight.
            window_s: Seconds of a window; a request must be answered within one.

        Raises:
            PerfAnalyzerError: A request failed, or no window saw an answer.
        """
        report = self.libraries / "report.csv"
        report.unlink(missing_ok=True)
        command = [str(self.program), "-m", model, "-u", url, "-i", "grpc", "--input-data", str(data), "-v"]
        command += ["-b", str(batch), "--concurrency-range", str(concurrency), "--measurement-interval"]
        command += [str(round(1000 * window_s)), "--max-trials", str(WINDOWS), "-s", _ANY_SPREAD]
        command += ["-f", str(report), "--verbose-csv"]
        try:
            done = subprocess.run(
                command, env=self._environment(), capture_output=True, text=True, timeout=WINDOWS * window_s + _SPARE_S
            )
        except subprocess.TimeoutExpired as err:
            raise PerfAnalyzerError("perf_analyzer did not end in time", source=model) from err
        if done.returncode or not report.is_file():
            raise PerfAnalyzerError(_complaint(done.stdout + done.stderr), source=model)
        return parse(report.read_text(), done.stdout)

    def _environment(self) -> dict[str, str]:
        # gRPC would go through the proxy of the environment even to 127.0.0.1.
        direct = {name: value for name, value in os.environ.items() if name.lower() not in _PROXIES}
        return {**direct, "LD_LIBRARY_PATH": str(self.libraries)}


def _complaint(said: str) -> str:
    """Find the line that names the reason, or take the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line.lower() or "failed" in line.lower()]
    return f"perf_analyzer measured nothing: {(told or lines or ['no word'])[-1]}"


@click.command(help="Fetch perf_analyzer, once.")
def main() -> None:
    """Run the command line."""
    with plain_errors():
        click.echo(fetch())


if __name__ == "__main__":
    main()
