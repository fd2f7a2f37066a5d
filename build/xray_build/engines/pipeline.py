"""The steps of a build. Each writes an artefact, compares it with the step before, and adds it to the build record.

    PyTorch -> onnx -> fp16 -> plan          TensorRT, for NVIDIA GPUs; rtx: TensorRT for RTX, for workstations
                `---> int8                    OpenVINO, for CPUs

A comparison that fails stops the build and leaves no artefact of that step. A step whose compiler or GPU is missing on
this machine is recorded as missing, and the others are still made.

    record = build(model, calibration_set, Path("build_folder"), ["fp16", "rtx"])

`xray-build` runs the same steps one by one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from .build_record import BuildRecord, StepResult, installed
from .calibration_set import CalibrationSet
from .fp16 import to_fp16
from .gpu import find_gpu, plan_session
from .int8 import Labelled, quantize
from .onnx_types import count_nodes, weight_bytes
from .parity import HALF, compare
from .runtime import UnavailableError, in_batches, run_onnx
from .tensorrt import BuilderOptions, compile_engine, load_compiler

if TYPE_CHECKING:
    from torch import nn

STEPS = ("onnx", "fp16", "plan", "rtx", "int8")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Buildable:
    """A model to build engines from.

    Attributes:
        module: uint8 (n, 1, s, s) -> the contract's outputs; in evaluation mode.
        name: Name for a reader.
        preprocessing: Preprocessing that it was trained with.
        operating_point: Probability from which a forced choice says Pneumonia.
        band: Probabilities between which the finding is Uncertain.
        own_images: Radiographs that its run kept for comparisons, or else phantoms.
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
    """Make all requested steps in their order, and write the build record.

    Args:
        model: Model to build.
        images: Calibration set, to compare and quantize on.
        folder: Folder to build into; artefacts of the same names are replaced.
        steps: Some of `STEPS`; "onnx" is always made, and "fp16" where an engine needs it.
        validation: Labelled radiographs, for int8.
        options: Options of the engines.
        say: Called with one line a step.

    Raises:
        BuildError: A step is unknown, or differs too much from the one before.
    """
    if unknown := [step for step in steps if step not in STEPS]:
        raise BuildError(f"step {unknown[0]!r} is none of {', '.join(STEPS)}")
    wanted = {"onnx", *steps} | ({"fp16"} if {"plan", "rtx"} & set(steps) else set())
    if "int8" in wanted and validation is None:
        raise BuildError("int8 needs labelled radiographs to evaluate on", remedy="name some with --validation")
    record = export(model, images, folder, say=say)
    makers: dict[str, Callable[[], None]] = {
        "fp16": lambda: fp16(record, images, folder, say=say),
        "plan": lambda: plan(record, images, folder, options, say=say),
        "rtx": lambda: rtx(record, folder, options, say=say),
    }
    if validation is not None:
        labelled = validation
        makers["int8"] = lambda: int8(record, images, folder, labelled, say=say)
    for step in STEPS[1:]:
        if step in wanted:
            attempt(record, step, folder, makers[step], say=say)
    return record


def attempt(record: BuildRecord, step: str, folder: Path, make: Callable[[], None], *, say: Say = print) -> bool:
    """Make a step. If this machine lacks what it needs, record the reason, say it in one line, and return False."""
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
    """PyTorch -> `model.onnx`, and a new build record; artefacts of another graph in the folder are removed."""
    # Needs torch, which the container that builds plans does not have.
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
    parity = replace(parity, calibration_set_sha256=images.sha256)
    built_with = {package: installed(package) for package in ("torch", "onnx", "onnxruntime")}
    record = BuildRecord(
        model.name,
        asdict(model.preprocessing),
        model.operating_point,
        list(model.band),
        images.about(),
        about={**model.about, "parity": parity.as_dict(), "built_with": built_with},
    )
    step = StepResult.from_files(
        "onnx",
        [path],
        against="PyTorch",
        seconds=time.monotonic() - started,
        parity=parity,
        details={"opset": OPSET, "nodes": count_nodes(path)},
        tools=("torch", "onnx", "onnxscript", "onnxruntime"),
    )
    kind = "radiographs" if images.real else "phantoms"
    _done(record, step, folder, say, f"ONNX agrees with PyTorch on {parity.images} {kind}: {parity}")
    return record


def fp16(record: BuildRecord, images: CalibrationSet, folder: Path, *, say: Say = print) -> None:
    """`model.onnx` -> `model_fp16.onnx`."""
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
    step = StepResult.from_files(
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
    """`model.onnx` -> `model_int8.xml` and `.bin`; without `validation` not evaluated, for measuring speed only."""
    started = time.monotonic()
    graph, path = record.check_artefact(folder, ONNX_FILE), folder / INT8_FILE
    with _removed_on_failure(path, _bin(folder)):
        done = quantize(graph, images, path, validation, operating_point=record.operating_point, band=record.band)
    details: dict[str, Any] = {"operations_in_8_bits": done.quantized, "evaluated_on": None}
    text = f"INT8, not evaluated: {done.quantized} operations in 8 bits; {done.parity}"
    if validation is not None and done.accuracy and done.auroc:
        count = len(validation.labels)
        details |= {
            "evaluated_on": {"source": validation.source, "images": count},
            "accuracy": dict(zip(("before", "after"), done.accuracy, strict=True)),
            "auroc": dict(zip(("before", "after"), done.auroc, strict=True)),
        }
        text = (
            f"INT8: accuracy {done.accuracy[0]:.4f} -> {done.accuracy[1]:.4f}, AUROC {done.auroc[0]:.4f} -> "
            f"{done.auroc[1]:.4f} on {count} radiographs; {done.quantized} operations in 8 bits; {done.parity}"
        )
    step = StepResult.from_files(
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
    """`model_fp16.onnx` -> `model_rtx.engine`, without a GPU. Compiled, not run: there is nothing to compare."""
    options = options or BuilderOptions()
    graph, path = record.check_artefact(folder, FP16_FILE), folder / RTX_FILE
    with _removed_on_failure(path):
        engine = compile_engine(graph, path, options, compiler="tensorrt-rtx")
    details = {"engine": asdict(engine), "options": options.as_dict()}
    step = StepResult.from_files(
        "rtx",
        [path],
        against="nothing: compiled without a GPU",
        seconds=engine.seconds,
        parity=None,
        details=details,
        tools=("tensorrt-rtx",),
    )
    size = f"{engine.bytes / 1e6:.1f} MB"
    text = f"TensorRT-RTX {engine.version}: {size} for compute capability {options.compute_capability}, not run here"
    _done(record, step, folder, say, text)


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
            calibration_set_sha256=images.sha256,
        )
    step = StepResult.from_files(
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


@contextlib.contextmanager
def _removed_on_failure(*paths: Path) -> Iterator[None]:
    """Start without these files, and leave none of them if the step fails."""
    for path in paths:
        path.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _done(record: BuildRecord, step: StepResult, folder: Path, say: Say, text: str) -> None:
    record.add(step)
    record.write(folder)
    say(text)
