"""Throughput and latency of the local Triton under load, by NVIDIA's perf_analyzer and by this project's client.

    make bench DATA=chest_xray
    make bench DATA=chest_xray ARGS="--parts load,urgent"

Four parts:

    load        1 to 64 requests in flight, one or 8 radiographs each, prepared (`medclip`) or encoded
                (`xray_classifier`), with and without dynamic batching; then queue delays, batch sizes and instances
    saturated   the server's highest throughput, and the processor time of one radiograph, against the same engine
                called in this process, in turn
    urgent      latency of a STAT radiograph while routine ones flood the server
    servers     one server, two behind one client, and one of two killed under load

Writes serving.csv (a row for each point of `load`, as soon as it is there), serving.json, serving.md and serving.png.
`medclip-lite` is the published model. `medclip-vit` has random weights, which cost the same time.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import load_report as reports
from benchmarks.callers import images_so_far, measure_servers, measure_urgent
from benchmarks.load_settings import AS_CONFIGURED, BenchError, Published, Setting
from benchmarks.machine import describe_machine, memory_mib, processor_seconds
from benchmarks.perf_analyzer import PerfAnalyzer, PerfAnalyzerError, fetch, write_input
from benchmarks.timing import rate
from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_build.engines.pipeline import export
from xray_build.engines.plugins import plugin
from xray_build.repository.configurations import serving_of
from xray_build.repository.publish import staged_version
from xray_build.repository.versions import versions
from xray_build.repository.write_configs import write_configs
from xray_build.triton.server import ServerStartError, TritonServer
from xray_client import RESEARCH_USE, XrayError, contract
from xray_client.console import console, plain_errors, quiet, signals_interrupt

PARTS = ("load", "saturated", "urgent", "servers")
LITE, VIT = "medclip-lite", "medclip-vit"
UNBATCHED = Setting("no batching", batching=False)
ANY_SIZE = Setting("batches of any size", {"preferred_batches": ()})
URGENT = (AS_CONFIGURED, Setting("batches of 4", {"preferred_batches": (4,)}), ANY_SIZE)
# Beside the repository's own, which is the first row of the table.
OTHERS = (
    Setting("delay 2 ms", {"queue_delay_us": 2000}),
    Setting("delay 5 ms", {"queue_delay_us": 5000}),
    ANY_SIZE,
    Setting("batches of 4", {"preferred_batches": (4,)}),
    Setting("batches of 8", {"preferred_batches": (8,)}),
    Setting("1 instance, a thread per core", {"instances": 1, "threads": 0}),
    Setting("2 instances, 1 thread each", {"instances": 2, "threads": 1}),
    Setting("4 instances, 1 thread each", {"instances": 4, "threads": 1}),
    Setting("3 instances, a thread per core each", {"instances": 3, "threads": len(os.sched_getaffinity(0))}),
)
COMPARED_AT = (1, 8, 32)
SATURATED = 16  # requests in flight: three batches of two under way, and more that wait
ALONE = (1, 4)  # batches of the engine in this process; the better one of each round counts


@dataclass(frozen=True)
class Extent:
    """Extent of the measurements.

    Args:
        concurrency: Requests in flight.
        batches: Images a request.
        most_in_flight: Largest number of images in flight; more would only wait.
        others: Settings of the server to compare.
        window_s: Seconds of one of perf_analyzer's windows.
        window_images: Smallest number of images in a window of `saturated`: with a slow network, one batch more or
            less shows.
        rounds: Rounds of everything that is compared in turn.
        flood_s: Seconds of the flood of routine radiographs.
        images: Number of radiographs that are sent, over and over.
    """

    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batches: tuple[int, ...] = (1, 8)
    most_in_flight: int = 64
    others: tuple[Setting, ...] = OTHERS
    window_s: float = 1.5
    window_images: int = 100
    rounds: int = 5
    flood_s: float = 24
    images: int = 32


QUICK = Extent((1, 4), (1, 8), 8, OTHERS[:1], window_s=0.4, window_images=1, rounds=1, flood_s=3, images=4)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of radiographs to send.",
)
@click.option(
    "--repository", type=click.Path(path_type=Path), default=Path("model_repository"), help="Model repository."
)
@click.option("--parts", default=",".join(PARTS), help="Parts to measure, comma-separated.")
@click.option("--vit/--no-vit", default=True, help="Measure medclip-vit as well; built once, below --out.")
@click.option("--quick", is_flag=True, help="Measure everything once and briefly, as a trial.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/bench"),
    help="Folder for the report, the log and medclip-vit.",
)
def main(images: Path, repository: Path, parts: str, vit: bool, quick: bool, out: Path) -> None:
    """Run the command line; see the module's text."""
    wanted = parts.split(",")
    if unknown := [part for part in wanted if part not in PARTS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PARTS)}", param_hint="--parts")
    with plain_errors(), signals_interrupt(), ExitStack() as stack:
        fetch()
        models = [Published.find(LITE, repository)]
        if vit:
            models.append(_random_model(VIT, out / VIT))
        bench = Bench.over(images, models[0], QUICK if quick else Extent(), out, stack)
        try:
            bench.run(models, wanted)
        except KeyboardInterrupt:
            console.print(f"interrupted; what was measured is in {out}")
            raise click.exceptions.Exit(130) from None
        finally:
            bench.write()
        console.print(reports.table(bench.report))
        click.echo(f"{out / 'serving.md'}\n{RESEARCH_USE}")


def _random_model(architecture: str, folder: Path) -> Published:
    """Publish a network with random weights in a repository of its own, once."""
    repository = folder / "model_repository"
    if not versions(repository):
        console.print(f"building {architecture}, random weights; once, a minute or two")
        with quiet():
            model = plugin("model")(f"random:{architecture}")
            with staged_version(repository) as stage:
                record = export(model, model.own_images, stage.folder, say=console.print)
                stage.publish(preprocessing=model.preprocessing, about=record.about, images=model.own_images.images)
    if serving := serving_of(repository):
        write_configs(repository, serving)  # it may have been built for other settings
    return Published.find(architecture, repository)


@dataclass
class Bench:
    """Inputs of the measurements, and the report so far."""

    analyzer: PerfAnalyzer
    radiographs: CalibrationSet
    inputs: dict[str, Path]
    extent: Extent
    out: Path
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def over(cls, images: Path, model: Published, extent: Extent, out: Path, stack: ExitStack) -> Bench:
        """Read the radiographs and write them for perf_analyzer; the stack removes temporary files.

        Raises:
            BuildError: There are no radiographs, or one cannot be read.
            PerfAnalyzerError: perf_analyzer has not been fetched.
        """
        radiographs = read_calibration(images, model.preprocessing, count=extent.images)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xray-bench-input-")))
        sent = {
            contract.MODEL_NAME: (contract.IMAGE, [image.tobytes() for image in radiographs.images]),
            contract.ENSEMBLE_MODEL: (
                contract.ENCODED,
                [(images / name).read_bytes() for name in radiographs.names],
            ),
        }
        inputs = {name: folder / f"{name}.json" for name in sent}
        for name, (tensor, values) in sent.items():
            write_input(inputs[name], tensor, values)
        out.mkdir(parents=True, exist_ok=True)
        (out / "serving.csv").unlink(missing_ok=True)
        report = {
            "machine": describe_machine(("onnxruntime", "nvidia-pytriton", "tritonclient")),
            "radiographs": radiographs.about(),
            "encoded_kb": float(np.mean([len(value) for value in sent[contract.ENSEMBLE_MODEL][1]]) / 1000),
            "rows": [],
            "saturated": [],
            "urgent": [],
            "failed": [],
        }
        return cls(stack.enter_context(PerfAnalyzer.ready()), radiographs, inputs, extent, out, report)

    @property
    def log(self) -> Path:
        """Log file of the servers."""
        return self.out / "server.log"

    def run(self, models: Sequence[Published], parts: Sequence[str]) -> None:
        """Measure the named parts."""
        lite = models[0]
        if "load" in parts:
            self._ladder(lite)
            self._compare(lite)
        for model in models if "saturated" in parts else ():
            with model.served_as(AS_CONFIGURED, self.log) as server:
                self._try(f"saturated, {model.name}", partial(self._saturated, model, server))
        for setting in URGENT if "urgent" in parts else ():
            with lite.served_as(setting, self.log, models=[contract.MODEL_NAME]) as server:
                self._try(f"urgent, {setting.name}", partial(self._urgent, setting, server.url))
        if "servers" in parts:
            self._try(f"servers, {models[-1].name}", partial(self._servers, models[-1]))
        if not self._measured:
            raise BenchError("nothing could be measured", source=str(self.out), remedy=f"see {self.log}")

    @property
    def _measured(self) -> bool:
        found = [self.report.get(part) for part in ("saturated", "urgent", "servers")]
        return any(found) or any(not row["failed"] for row in self.report["rows"])

    def _try(self, name: str, measure: Callable[[], None]) -> None:
        """Measure; if that fails, as on a machine that is too busy, report it and go on with the rest."""
        console.print(f"{name} ...")
        try:
            measure()
        except ServerStartError:
            raise
        except XrayError as err:
            console.print(f"{name}: {err}")
            self.report["failed"].append(f"{name}: {err}")

    def write(self) -> None:
        """Write the report of all measurements so far."""
        self.report["machine"]["load_after"] = os.getloadavg()[0]
        (self.out / "serving.json").write_text(json.dumps(self.report, indent=2) + "\n")
        (self.out / "serving.md").write_text(reports.markdown(self.report))
        if any(not row["failed"] for row in self.report["rows"]):
            reports.picture(self.report, self.out / "serving.png")

    def _ladder(self, model: Published) -> None:
        """Measure more and more requests in flight, prepared and encoded, with and without dynamic batching."""
        with ExitStack() as stack:
            urls = {
                each: stack.enter_context(model.served_as(each, self.log)).url for each in (AS_CONFIGURED, UNBATCHED)
            }
            for name in self.inputs:
                for batch in self.extent.batches:
                    for concurrency in self.extent.concurrency:
                        if concurrency == 1 or concurrency * batch <= self.extent.most_in_flight:
                            self._points("ladder", urls, name, batch, concurrency)

    def _compare(self, model: Published) -> None:
        """Compare settings of the server."""
        own = [contract.MODEL_NAME]
        with ExitStack() as stack:
            urls = {
                each: stack.enter_context(model.served_as(each, self.log, models=own)).url
                for each in (AS_CONFIGURED, *self.extent.others)
            }
            for concurrency in COMPARED_AT:
                if concurrency <= self.extent.most_in_flight:
                    self._points("settings", urls, contract.MODEL_NAME, 1, concurrency)

    def _points(self, part: str, urls: Mapping[Setting, str], model: str, batch: int, concurrency: int) -> None:
        """Measure one point for each setting, one after the other: a busy minute hits all alike."""
        for setting, url in urls.items():
            row: dict[str, Any] = {"part": part, "setting": setting.name, "model": model, "batch": batch}
            row |= {"concurrency": concurrency, "failed": ""}
            try:
                measured = self.analyzer.measure(
                    url, model, self.inputs[model], batch=batch, concurrency=concurrency, window_s=self.extent.window_s
                )
                row |= {**asdict(measured), "stable": measured.stable}
                said = f"{measured.images_a_second:.1f} images/s, p99 {measured.p99_ms:.1f} ms"
                said += "" if measured.stable else " (not stable)"
            except PerfAnalyzerError as err:
                row["failed"] = said = str(err)
            console.print(f"{setting.name}: {model}, {concurrency} x {batch}: {said}")
            self.report["rows"].append(row)
            _append(self.out / "serving.csv", row)

    def _saturated(self, model: Published, server: TritonServer) -> None:
        """Saturate the server, and the same engine with the same threads in this process, in turn."""
        data, sessions = self.inputs[contract.MODEL_NAME], model.sessions()
        pilot = rate(sessions, self.radiographs.images, self.extent.window_s)
        seconds = max(2 * self.extent.window_s, self.extent.window_images / pilot)

        def served() -> tuple[float, float]:
            images, spent = images_so_far(server.url), processor_seconds(server.pid)
            measured = self.analyzer.measure(
                server.url, contract.MODEL_NAME, data, concurrency=SATURATED, window_s=seconds
            )
            images, spent = images_so_far(server.url) - images, processor_seconds(server.pid) - spent
            return measured.images_a_second, 1000 * spent / images

        def alone(batch: int) -> tuple[float, float]:
            started, spent = time.perf_counter(), time.process_time()
            images_a_second = rate(sessions, self.radiographs.images, seconds, batch=batch)
            images = images_a_second * (time.perf_counter() - started)
            return images_a_second, 1000 * (time.process_time() - spent) / images

        ways: dict[str, Callable[[], tuple[float, float]]] = {"served": served}
        ways |= {f"alone, {batch}": partial(alone, batch) for batch in ALONE}
        rounds = [{name: way() for name, way in ways.items()} for _ in range(self.extent.rounds)]
        self.report["saturated"].append(
            {
                "model": model.name,
                "instances": model.engine.instances,
                "threads": model.threads,
                "images_a_second": {name: [taken[name][0] for taken in rounds] for name in ways},
                "processor_ms": {name: [taken[name][1] for taken in rounds] for name in ways},
                "memory_mib": memory_mib(server.pid),
            }
        )

    def _urgent(self, setting: Setting, url: str) -> None:
        measured = measure_urgent(
            self.analyzer, url, self.inputs[contract.MODEL_NAME], self.radiographs.images, self.extent.flood_s
        )
        self.report["urgent"].append({"setting": setting.name, **measured})

    def _servers(self, model: Published) -> None:
        self.report["servers"] = measure_servers(
            model, self.radiographs.images, self.log, rounds=self.extent.rounds, seconds=3 * self.extent.window_s
        )


FIELDS = ["part", "setting", "model", "batch", "concurrency", "images_a_second", "p50_ms", "p90_ms", "p95_ms", "p99_ms"]
FIELDS += ["queue_ms", "compute_ms", "engine_batch", "spread", "stable", "failed"]


def _append(path: Path, row: dict[str, Any]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    main()
