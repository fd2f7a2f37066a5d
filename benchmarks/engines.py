"""Comparison of all engines of all three networks: built, compared and timed side by side in one run.

    make bench PART=engines DATA=chest_xray
    make bench PART=engines DATA=chest_xray VALIDATION=radiographs.csv ARGS="--clock cpu"

`medclip-lite` is the reference model; MedCLIP's own networks have random weights, which costs the same time. Engines
are called in turn, so that a busy machine slows all of them alike: trust the ratios. Writes engines.json, engines.md
and engines.png.

Two clocks. `wall`: all cores, for a machine that does nothing else. `cpu`: one thread, and the processor time that it
was given, which a busy machine stretches little; throughput is then that of one core.

The arithmetic peak is the best of several large 32-bit matrix products in the same run, by the same clock; a network's
operations (2 for a multiplication with its addition) are counted by PyTorch. INT8 may pass 100 % of it, as its
arithmetic is another.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import engines_report as bench_report
from benchmarks.machine import describe_machine
from benchmarks.timing import in_turn, rate
from xray_build.artefacts import BUILD_RECORD_FILE, INT8_FILE, ONNX_FILE, PLAN_FILE
from xray_build.engines.build_record import BuildRecord
from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_build.engines.gpu import find_gpu, milliseconds, plan_session
from xray_build.engines.pipeline import Buildable, export, fp16, int8, plan, rtx
from xray_build.engines.plugins import plugin
from xray_build.engines.runtime import Images, Run, UnavailableError, onnx_session, openvino_session
from xray_build.engines.tensorrt import BuilderOptions, compile_engine, load_compiler
from xray_client.console import plain_errors

MODELS = {
    "medclip-lite": "reference",
    "medclip-vit": "random:medclip-vit",
    "medclip-resnet": "random:medclip-resnet",
}
BATCHES = (1, 4, 16)
TOOLS = ("torch", "onnxruntime", "openvino", "nncf", "nvidia-modelopt")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_WARM_UP = 3


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True}, help=__doc__.split("\n")[0]
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Calibration set of real radiographs: folder, table or .npy.",
)
@click.option(
    "--validation",
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="Labelled radiographs to evaluate the reference model's INT8 on.  [default: not evaluated]",
)
@click.option("--models", default=",".join(MODELS), help="Networks, comma-separated.")
@click.option("--count", type=click.IntRange(2), default=200, help="Radiographs in the calibration set.")
@click.option("--calls", type=click.IntRange(3), default=40, help="Timed calls of each engine at batch 1.")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Timed rounds of each engine at each larger batch.")
@click.option(
    "--clock",
    type=click.Choice(list(CLOCKS)),
    default="wall",
    help="wall: all cores; cpu: processor time of one thread.",
)
@click.option(
    "--reuse", is_flag=True, help="Time the artefacts of an earlier run in --out, and build only missing ones."
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/engines"), help="Folder for artefacts and report."
)
def main(
    images: Path,
    validation: Path | None,
    models: str,
    count: int,
    calls: int,
    rounds: int,
    clock: str,
    reuse: bool,
    out: Path,
) -> None:
    """Run the command line; see the module's text."""
    with plain_errors():
        out.mkdir(parents=True, exist_ok=True)
        report: dict[str, Any] = {"machine": {**describe_machine(TOOLS), "clock": clock}, "models": {}}
        for name in models.split(","):
            if name not in MODELS:
                raise click.BadParameter(f"{name!r} is none of {', '.join(MODELS)}", param_hint="--models")
            click.echo(f"{name}:")
            model = plugin("model")(MODELS[name])
            chosen = read_calibration(images, model.preprocessing, count=count)
            labelled = validation if name == "medclip-lite" else None
            folder = out / name
            if not (reuse and (folder / BUILD_RECORD_FILE).is_file()):
                _build(model, chosen, labelled, folder)
            report["models"][name] = _measure(model, chosen, folder, calls, rounds, clock)
            report["machine"]["load_after"] = os.getloadavg()[0]
            (out / "engines.json").write_text(json.dumps(report, indent=2) + "\n")
        (out / "engines.md").write_text(bench_report.markdown(report))
        bench_report.picture(report, out / "engines.png")
        click.echo(bench_report.markdown(report))


def _measure(
    model: Buildable, images: CalibrationSet, folder: Path, calls: int, rounds: int, clock: str
) -> dict[str, Any]:
    record = BuildRecord.read(folder)
    threads = 1 if clock == "cpu" else os.cpu_count() or 1
    torch.set_num_threads(threads)
    seconds = CLOCKS[clock]
    engines: dict[str, Run] = {
        "PyTorch": _torch_session(model),
        "ONNX Runtime": onnx_session(folder / ONNX_FILE, threads=threads),
        "OpenVINO FP32": openvino_session(folder / ONNX_FILE, threads=threads),
        "OpenVINO INT8": openvino_session(folder / INT8_FILE, threads=threads),
    }
    peak = _peak(seconds)
    latency = _latency(engines, images.images, calls, seconds)
    throughput = {
        name: max(by_batch.items(), key=lambda item: item[1])
        for name, by_batch in _throughput(engines, images.images, rounds, seconds).items()
    }
    return {
        "build": record.as_dict(),
        "gflop_an_image": _flops(model) / 1e9,
        "peak_gflop_a_second": max(peak, _peak(seconds)) / 1e9,
        "latency_ms": {name: [float(np.percentile(ms, q)) for q in (50, 95)] for name, ms in latency.items()},
        "throughput": {name: {"batch": batch, "images_a_second": rate} for name, (batch, rate) in throughput.items()},
        "instances": _instances(folder, images.images),
        "gpu": _on_gpu(record, images, folder),
    }


def _build(model: Buildable, images: CalibrationSet, validation: Path | None, folder: Path) -> None:
    record = export(model, images, folder, say=click.echo)
    labelled = plugin("labelled")(validation, None, model.preprocessing) if validation else None
    steps: tuple[Callable[[], None], ...] = (
        lambda: fp16(record, images, folder, say=click.echo),
        lambda: rtx(record, folder, say=click.echo),
        lambda: int8(record, images, folder, labelled, say=click.echo),
        lambda: plan(record, images, folder, say=click.echo),
    )
    for step in steps:
        try:
            step()
        except UnavailableError as err:
            click.echo(f"not built: {err}")


def _torch_session(model: Buildable) -> Run:
    def run(images: Images) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in model.module(torch.from_numpy(images))]

    return run


def _flops(model: Buildable) -> float:
    """Count the operations for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.module(torch.zeros(1, *model.preprocessing.shape, dtype=torch.uint8))
    return float(counter.get_total_flops())


def _peak(clock: Callable[[], float], size: int = 2048, rounds: int = 6) -> float:
    """Operations a second of the best of several 32-bit matrix products."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    return 2000 * size**3 / float(in_turn({"product": lambda: a @ b}, rounds, clock=clock)["product"].min())


def _latency(
    engines: dict[str, Run], images: Images, calls: int, clock: Callable[[], float]
) -> dict[str, npt.NDArray[np.float64]]:
    """Milliseconds of each call with one image."""

    def one_image_a_call(run: Run) -> Callable[[], object]:
        parts = itertools.cycle(images)
        return lambda: run(next(parts)[None])

    ways = {name: one_image_a_call(run) for name, run in engines.items()}
    return in_turn(ways, calls, warm_up=_WARM_UP, primed=True, clock=clock)


def _throughput(
    engines: dict[str, Run], images: Images, rounds: int, clock: Callable[[], float]
) -> dict[str, dict[int, float]]:
    """Images a second at each batch size, median of the rounds."""
    rates: dict[str, dict[int, float]] = {name: {} for name in engines}
    for batch in BATCHES:
        part = np.resize(images, (batch, *images.shape[1:]))
        ways = {name: partial(run, part) for name, run in engines.items()}
        for name, taken in in_turn(ways, rounds, primed=True, clock=clock).items():
            rates[name][batch] = 1000 * batch / float(np.median(taken))
    return rates


def _instances(folder: Path, images: Images, *, seconds: float = 1.0, rounds: int = 2) -> dict[str, float]:
    """Measure images a second, one image a call, of one instance on all cores and of one instance a core."""
    cores = os.cpu_count() or 1
    sessions = {
        "ONNX Runtime": (onnx_session, ONNX_FILE),
        "OpenVINO FP32": (openvino_session, ONNX_FILE),
        "OpenVINO INT8": (openvino_session, INT8_FILE),
    }
    ways = {
        f"{name}, {count} x {threads} threads": [load(folder / file, threads=threads) for _ in range(count)]
        for name, (load, file) in sessions.items()
        for count, threads in ((1, cores), (cores, 1))
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, instances in ways.items():
            rates[way].append(rate(instances, images, seconds))
    return {way: float(np.median(measured)) for way, measured in rates.items()}


def _on_gpu(record: BuildRecord, images: CalibrationSet, folder: Path) -> dict[str, Any] | None:
    """Time one image and the plan's tuned batch on this machine's GPU; None without a GPU or a plan."""
    made = record.step("plan")
    if made is None:
        return None
    trt, _ = load_compiler("tensorrt")
    options = BuilderOptions()
    full = folder / "model_fp32.plan"
    compile_engine(folder / ONNX_FILE, full, options)
    shape = images.images.shape[1:]
    taken: dict[str, Any] = {"name": find_gpu().name, "milliseconds": {}}
    for name, path in (("TensorRT FP16", folder / PLAN_FILE), ("TensorRT FP32", full)):
        with plan_session(trt, path, max_batch=options.max_batch, shape=shape) as run:
            for batch in (1, options.opt_batch):
                part = np.resize(images.images, (batch, *shape))
                taken["milliseconds"][f"{name}, batch {batch}"] = milliseconds(run, part)
    return taken


if __name__ == "__main__":
    main()
