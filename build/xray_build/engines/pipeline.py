"""The steps of a build, each written, compared with the step before, and recorded.

    PyTorch -> onnx -> fp16 -> plan          TensorRT, for NVIDIA GPUs; rtx: TensorRT for RTX, for workstations
                `---> int8                    OpenVINO, for CPUs

A comparison that fails stops the build and leaves no artefact of that step. A step whose compiler or GPU is not on this
machine is recorded as missing, and the others are still made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    FP16_FILE,
    INT8_FILE,
    INT8_WEIGHTS_FILE,
    ONNX_FILE,
    PLAN_FILE,
    RTX_FILE,
)
from xray_build.errors import BuildError
from xray_client import Preprocessing

from .build_record import BuildRecord, StepRecord, installed
from .calibration_set import CalibrationSet
from .gpu import find_gpu, plan_session
from .onnx_types import count_nodes, weight_bytes
from .parity import HALF, compare
from .runtime import UnavailableError, in_batches, run_onnx
from .tensorrt import BuilderOptions, compile_engine, load_compiler

if TYPE_CHECKING:
    from torch import nn

    from .int8 import Labelled

STEPS = ("onnx", "fp16", "plan", "rtx", "int8")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Buildable:
    """A model that can be built.

    Attributes:
        module: uint8 (n, 1, s, s) -> the contract's outputs; in evaluation mode.
        name: What a reader calls it.
        preprocessing: Its record.
        operating_point: Probability from which a forced choice says Pneumonia.
        band: Thresholds of the decision.
        own_images: Radiographs that it brings along to be compared on, or phantoms.
        about: Facts for the manifest and the model card (`xray_build.repository.card` lists the keys that it reads);
            `checkpoint` maps the checkpoint's files to their SHA-256.
    """

    module: nn.Module
    name: str
    preprocessing: Preprocessing
    operating_point: float
    band: tuple[float, ...]
    own_images: CalibrationSet
    about: Mapping[str, Any] = field(default_factory=dict)


def build(
    model: Buildable,
    images: CalibrationSet,
    folder: Path,
    steps: Sequence[str] = ("onnx",),
    *,
    validation: Labelled | None = None,
    options: BuilderOptions | None = None,
    say: Say = print,
) -> BuildRecord:
    """Make all steps that are asked for, in their order, and write the record.

    Args:
        model: What to build.
        images: To compare and calibrate on.
        folder: Where to; artefacts of the same names are replaced.
        steps: Some of `STEPS`; "onnx" is always made, and "fp16" where an engine needs it.
        validation: Labelled radiographs, for int8.
        options: Of the engines.
        say: Told one line a step.

    Raises:
        BuildError: A step is not known, or differs too much from the one before.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise BuildError(f"step {unknown[0]!r} is none of {', '.join(STEPS)}")
    wanted = {"onnx", *steps} | ({"fp16"} if {"plan", "rtx"} & set(steps) else set())
    if "int8" in wanted and validation is None:
        raise BuildError("int8 needs labelled radiographs to be judged on", remedy="name some with --validation")
    record = export(model, images, folder, say=say)
    makers: dict[str, Callable[[], None]] = {
        "fp16": lambda: fp16(record, images, folder, say=say),
        "plan": lambda: plan(record, images, folder, options, say=say),
        "rtx": lambda: rtx(record, folder, options, say=say),
    }
    if validation is not None:
        judge = validation
        makers["int8"] = lambda: int8(record, images, folder, judge, say=say)
    for step in STEPS[1:]:
        if step in wanted:
            attempt(record, step, folder, makers[step], say=say)
    return record


def attempt(record: BuildRecord, step: str, folder: Path, make: Callable[[], None], *, say: Say = print) -> bool:
    """Make a step; where what it needs is not on this machine, record and say so in one line, and answer False."""
    try:
        make()
    except UnavailableError as err:
        built = ", ".join(artefact["file"] for made in record.steps for artefact in made.artefacts)
        record.missing[step] = str(err)
        record.write(folder)
        say(f"{step} not built: {err}; still built: {built}")
        return False
    return True


def export(model: Buildable, images: CalibrationSet, folder: Path, *, say: Say = print) -> BuildRecord:
    """PyTorch -> `model.onnx`, and a new record; what else lies there was built from another graph and is removed."""
    from .onnx_export import OPSET, check_parity, export_onnx

    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        BUILD_RECORD_FILE,
        FP16_FILE,
        PLAN_FILE,
        RTX_FILE,
        INT8_FILE,
        _bin(folder).name,
    ):
        (folder / name).unlink(missing_ok=True)
    path = folder / ONNX_FILE
    with _removed_on_failure(path):
        export_onnx(model.module, images.images[:2], path)
        parity = check_parity(model.module, path, images.images, names=images.names)
    parity = replace(parity, calibration_sha256=images.sha256)
    built_with = {package: installed(package) for package in ("torch", "onnx", "onnxruntime")}
    record = BuildRecord(
        model.name,
        asdict(model.preprocessing),
        model.operating_point,
        list(model.band),
        images.about(),
        about={**model.about, "parity": parity.as_dict(), "built_with": built_with},
    )
    step = StepRecord.of(
        "onnx",
        [path],
        against="PyTorch",
        seconds=time.monotonic() - started,
        parity=parity,
        details={"opset": OPSET, "nodes": count_nodes(path)},
        tools=("torch", "onnx", "onnxscript", "onnxruntime"),
    )
    what = "radiographs" if images.real else "phantoms"
    _done(record, step, folder, say, f"ONNX agrees with PyTorch on {parity.images} {what}: {parity}")
    return record


def fp16(record: BuildRecord, images: CalibrationSet, folder: Path, *, say: Say = print) -> None:
    """`model.onnx` -> `model_fp16.onnx`."""
    from .fp16 import to_fp16

    started = time.monotonic()
    graph, path = record.check_artefact(folder, ONNX_FILE), folder / FP16_FILE
    with _removed_on_failure(path):
        done = to_fp16(graph, images, path, band=record.band)
    details = {
        "nodes": done.nodes,
        "tower_in_fp32": done.tower_in_fp32,
        "conversions": done.attempts,
        "weight_bytes": weight_bytes(path),
    }
    step = StepRecord.of(
        "fp16",
        [path],
        against=ONNX_FILE,
        seconds=time.monotonic() - started,
        parity=done.parity,
        details=details,
        tools=("nvidia-modelopt", "onnx", "onnxruntime"),
    )
    kept = f"; the first {done.tower_in_fp32:.0%} of the tower stay in FP32" if done.tower_in_fp32 else ""
    _done(record, step, folder, say, f"FP16 agrees with FP32 on {done.parity.images} radiographs: {done.parity}{kept}")


def int8(
    record: BuildRecord, images: CalibrationSet, folder: Path, validation: Labelled | None, *, say: Say = print
) -> None:
    """`model.onnx` -> `model_int8.xml` and `.bin`; without `validation` not judged, which is for measuring only."""
    from .int8 import quantize

    started = time.monotonic()
    graph, path = record.check_artefact(folder, ONNX_FILE), folder / INT8_FILE
    with _removed_on_failure(path, _bin(folder)):
        done = quantize(graph, images, path, validation, operating_point=record.operating_point, band=record.band)
    details: dict[str, Any] = {"operations_in_8_bits": done.quantized, "judged_on": None}
    text = f"INT8, not judged: {done.quantized} operations in 8 bits; {done.parity}"
    if validation is not None and done.accuracy and done.auroc:
        count = len(validation.labels)
        details |= {
            "judged_on": {"source": validation.source, "images": count},
            "accuracy": dict(zip(("before", "after"), done.accuracy, strict=True)),
            "auroc": dict(zip(("before", "after"), done.auroc, strict=True)),
        }
        text = (
            f"INT8: accuracy {done.accuracy[0]:.4f} -> {done.accuracy[1]:.4f}, AUROC {done.auroc[0]:.4f} -> "
            f"{done.auroc[1]:.4f} on {count} radiographs; {done.quantized} operations in 8 bits; {done.parity}"
        )
    step = StepRecord.of(
        "int8",
        [path, _bin(folder)],
        against=ONNX_FILE,
        seconds=time.monotonic() - started,
        parity=done.parity,
        details=details,
        tools=("openvino", "nncf"),
    )
    _done(record, step, folder, say, text)


def rtx(record: BuildRecord, folder: Path, options: BuilderOptions | None = None, *, say: Say = print) -> None:
    """`model_fp16.onnx` -> `model_rtx.engine`, without a GPU. It is compiled, not run: there is nothing to compare."""
    options = options or BuilderOptions()
    graph, path = record.check_artefact(folder, FP16_FILE), folder / RTX_FILE
    with _removed_on_failure(path):
        engine = compile_engine(graph, path, options, compiler="tensorrt-rtx")
    details = {"engine": asdict(engine), "options": options.as_dict()}
    step = StepRecord.of(
        "rtx",
        [path],
        against="nothing: compiled without a GPU",
        seconds=engine.seconds,
        parity=None,
        details=details,
        tools=("tensorrt-rtx",),
    )
    size = f"{engine.bytes / 1e6:.1f} MB"
    said = f"TensorRT-RTX {engine.version}: {size} for compute capability {options.compute_capability}, not run here"
    _done(record, step, folder, say, said)


def plan(
    record: BuildRecord,
    images: CalibrationSet,
    folder: Path,
    options: BuilderOptions | None = None,
    *,
    say: Say = print,
) -> None:
    """`model_fp16.onnx` -> `model.plan`, run on this machine's GPU and compared with the FP16 graph.

    Raises:
        UnavailableError: No TensorRT, or no GPU.
    """
    options = options or BuilderOptions()
    graph, path = record.check_artefact(folder, FP16_FILE), folder / PLAN_FILE
    trt, version = load_compiler("tensorrt")
    gpu = find_gpu()
    with _removed_on_failure(path):
        engine = compile_engine(graph, path, options, compiler="tensorrt")
        with plan_session(trt, path, max_batch=options.max_batch, shape=images.images.shape[1:]) as run:
            found = in_batches(run, images.images, batch=options.opt_batch)
        parity = compare(
            found,
            run_onnx(record.check_artefact(folder, ONNX_FILE), images.images, batch=16),
            HALF,
            step="TensorRT",
            names=images.names,
            band=record.band,
            calibration_sha256=images.sha256,
        )
    step = StepRecord.of(
        "plan",
        [path],
        against=ONNX_FILE,
        seconds=engine.seconds,
        parity=parity,
        details={
            "tensorrt": version,
            "gpu": gpu.as_dict(),
            "engine": asdict(engine),
            "options": options.as_dict(),
        },
    )
    _done(
        record, step, folder, say, f"TensorRT {version} on {gpu.name} agrees on {parity.images} radiographs: {parity}"
    )


def _bin(folder: Path) -> Path:
    return folder / INT8_WEIGHTS_FILE


class _removed_on_failure:  # noqa: N801 (a context manager, used as one)
    """A step that fails leaves none of its files."""

    def __init__(self, *paths: Path) -> None:
        self.paths = paths

    def __enter__(self) -> None:
        for path in self.paths:
            path.unlink(missing_ok=True)

    def __exit__(self, failed: Any, *_: Any) -> None:
        if failed is not None:
            for path in self.paths:
                path.unlink(missing_ok=True)


def _done(record: BuildRecord, step: StepRecord, folder: Path, say: Say, text: str) -> None:
    record.add(step)
    record.write(folder)
    say(text)
