"""Command line of the build, `xray-build`: a command for each step, which compares its artefact with the step before.

    xray-build onnx runs/latest --out build_folder           # PyTorch -> model.onnx
    xray-build fp16 build_folder --images chest_xray         # -> model_fp16.onnx
    xray-build plan build_folder                             # -> model.plan, inside the container that serves
    xray-build plan build_folder --compiler tensorrt-rtx     # -> model_rtx.engine, for RTX cards; needs no GPU
    xray-build int8 build_folder --validation chest_xray     # -> model_int8.xml, for CPUs

Exit codes: 0 done; 1 a step differs too much, or another error; 2 wrong command line; 3 this machine lacks what the
step needs (a GPU, a library), and the artefacts built before are complete.
"""

from __future__ import annotations

import click

from xray_client.console import LazyCommand, LazyGroup

_COMMANDS = {
    "onnx": LazyCommand("xray_build.engines.cli:onnx_command", "Export a model to ONNX.", extra="build"),
    "fp16": LazyCommand("xray_build.engines.cli:fp16_command", "Convert a build's model to FP16.", extra="build"),
    "plan": LazyCommand("xray_build.engines.cli:plan_command", "Compile with NVIDIA's compiler.", extra="build"),
    "int8": LazyCommand("xray_build.engines.cli:int8_command", "Quantize for CPUs, OpenVINO.", extra="build"),
    "publish": LazyCommand("xray_build.repository.cli:publish", "Publish a build as the next version.", extra="build"),
    "verify": LazyCommand("xray_build.repository.cli:verify", "Check a version before it is served.", extra="build"),
    "versions": LazyCommand("xray_build.repository.cli:versions", "List the published versions.", extra="build"),
    "rollback": LazyCommand("xray_build.repository.cli:rollback", "Serve an earlier version again.", extra="build"),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="medclip-triton", prog_name="xray-build")
def main() -> None:
    """Build engines from a checkpoint, and publish them as versions that Triton serves.

    Every step of a build is compared with the one before. Most commands need the extra `build`:
    pip install 'medclip-triton[build]'
    """


if __name__ == "__main__":
    main()
