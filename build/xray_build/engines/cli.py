"""Commands that build: onnx, fp16, plan and int8, one for each step; part of `xray-build`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from xray_client import Preprocessing, XrayError

from . import pipeline
from .build_record import BuildRecord
from .calibration_set import COUNT, CalibrationSet, read_calibration
from .plugins import plugin
from .runtime import UnavailableError
from .tensorrt import COMPILERS, BuilderOptions

UNAVAILABLE = 3

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}
_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


def _plainly(command: Callable[..., None]) -> Callable[..., None]:
    """Turn an expected error into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UnavailableError as err:
            click.echo(f"not built: {err}", err=True)
            raise SystemExit(UNAVAILABLE) from err
        except XrayError as err:
            raise click.ClickException(str(err)) from err

    return wrapped


def _images(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that choose the calibration set."""
    for option in (
        click.option("--seed", type=int, default=0, help="Seed that chooses the radiographs."),
        click.option("--count", type=click.IntRange(2), default=COUNT, help="Radiographs in the calibration set."),
        click.option(
            "--images",
            type=click.Path(path_type=Path, exists=True),
            default=None,
            help="Calibration set: folder, CSV with a column `path`, or prepared .npy.  [default: as before]",
        ),
    ):
        command = option(command)
    return command


@click.command("onnx", context_settings=_CONTEXT)
@click.argument("model", default="runs/latest")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to build into.")
@_images
@_plainly
def onnx_command(model: str, out: Path, images: Path | None, count: int, seed: int) -> None:
    """Export MODEL (a run, a checkpoint, or "reference") to ONNX and compare it with PyTorch.

    A probability may differ by at most 1e-4.
    """
    buildable = plugin("model")(model)
    if images is not None:
        chosen = read_calibration(images, buildable.preprocessing, count=count, seed=seed)
    else:
        chosen = buildable.own_images
    pipeline.export(buildable, chosen, out, say=click.echo)


@click.command("fp16", context_settings=_CONTEXT)
@_folder
@_images
@_plainly
def fp16_command(folder: Path, images: Path | None, count: int, seed: int) -> None:
    """Convert FOLDER's model.onnx to FP16; inputs and outputs keep their types.

    A probability may differ by at most 2e-3, and no decision may change: as much of the graph as that takes stays in
    FP32.
    """
    record = BuildRecord.read(folder)
    chosen = _chosen(record, images, count, seed)
    _attempt(record, "fp16", folder, lambda: pipeline.fp16(record, chosen, folder, say=click.echo))


@click.command("plan", context_settings=_CONTEXT)
@_folder
@click.option(
    "--compiler",
    type=click.Choice(COMPILERS),
    default="tensorrt",
    help="tensorrt: for Triton, needs the GPU that will serve; tensorrt-rtx: for RTX workstations, needs none.",
)
@click.option("--min-batch", type=click.IntRange(1), default=BuilderOptions.min_batch, help="Smallest batch, images.")
@click.option(
    "--opt-batch", type=click.IntRange(1), default=BuilderOptions.opt_batch, help="Batch to tune for, images."
)
@click.option("--max-batch", type=click.IntRange(1), default=BuilderOptions.max_batch, help="Largest batch, images.")
@click.option(
    "--optimization-level",
    type=click.IntRange(0, 5),
    default=BuilderOptions.optimization_level,
    help="0 = quickest build, 5 = quickest engine.",
)
@click.option("--workspace", type=click.IntRange(0), default=0, help="Memory a layer may use, MiB; 0 = no limit.")
@click.option(
    "--timing-cache",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="File that keeps timings of kernels between builds, tensorrt only.  [default: none]",
)
@click.option(
    "--compute-capability",
    default=BuilderOptions.compute_capability,
    help='GPU to build for, tensorrt-rtx only, such as 8.6, 8.9, 12.0; "current" = that of this machine.',
)
@_images
@_plainly
def plan_command(
    folder: Path, compiler: str, images: Path | None, count: int, seed: int, workspace: int, **builder: Any
) -> None:
    """Compile FOLDER's model_fp16.onnx with NVIDIA's compiler, for any batch of the profile."""
    record = BuildRecord.read(folder)
    options = BuilderOptions(workspace_mib=workspace, **builder)
    if compiler == "tensorrt-rtx":
        _attempt(record, "rtx", folder, lambda: pipeline.rtx(record, folder, options, say=click.echo))
        return
    chosen = _chosen(record, images, count, seed)
    _attempt(record, "plan", folder, lambda: pipeline.plan(record, chosen, folder, options, say=click.echo))


@click.command("int8", context_settings=_CONTEXT)
@_folder
@click.option(
    "--validation",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Labelled radiographs to evaluate on: folder or table, as for finetune.run.",
)
@click.option(
    "--splits",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="splits.csv of a run, to evaluate on its validation part.  [default: the table's val part, or else all]",
)
@_images
@_plainly
def int8_command(
    folder: Path, validation: Path, splits: Path | None, images: Path | None, count: int, seed: int
) -> None:
    """Quantize FOLDER's model.onnx for CPUs (OpenVINO).

    On the validation radiographs, accuracy at the operating point may fall by at most 0.3 points, and AUROC by 0.002.
    """
    record = BuildRecord.read(folder)
    labelled = plugin("labelled")(validation, splits, Preprocessing(**record.preprocessing))
    chosen = _chosen(record, images, count, seed)
    _attempt(record, "int8", folder, lambda: pipeline.int8(record, chosen, folder, labelled, say=click.echo))


def _attempt(record: BuildRecord, step: str, folder: Path, make: Callable[[], None]) -> None:
    if not pipeline.attempt(record, step, folder, make, say=functools.partial(click.echo, err=True)):
        raise SystemExit(UNAVAILABLE)


def _chosen(record: BuildRecord, images: Path | None, count: int, seed: int) -> CalibrationSet:
    """Read the named calibration set, or that of the steps before, which must still be the same."""
    preprocessing = Preprocessing(**record.preprocessing)
    if images is not None:
        return read_calibration(images, preprocessing, count=count, seed=seed)
    about = record.calibration_set
    if not about["radiographs"]:
        raise click.UsageError("this build was compared on phantoms only: name real radiographs with --images")
    again = read_calibration(Path(about["source"]), preprocessing, count=about["images"], seed=about["seed"] or 0)
    if again.sha256 != about["sha256"]:
        raise click.UsageError(f"{about['source']} has other images than before: name the set with --images")
    return again
