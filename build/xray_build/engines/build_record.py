"""The build record, `build.json` beside the artefacts: the steps of a build, their comparisons and their tools.

{"build_version": 1, "model": ..., "preprocessing": ..., "operating_point": 0.18, "band": [...],
 "about": {"trained_on", "metrics", ..., "checkpoint": {"model.safetensors": sha256, ...}, "parity", "built_with"},
 "calibration_set": {"source", "images", "seed", "radiographs", "sha256"},
 "steps": [{"name": "onnx", "against": "PyTorch", "artefacts": [{"file", "sha256", "bytes"}], "seconds",
            "parity": {"images", "probability", "heatmap", "novelty", "decisions_changed", "calibration_set_sha256"},
            "details": {...}, "tools": {...}}, ...],
 "missing": {"plan": "why it was not built"}}
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xray_build.artefacts import BUILD_RECORD_FILE, FP16_FILE, ONNX_FILE
from xray_build.errors import BuildError
from xray_client import Preprocessing
from xray_client.files import sha256, write_atomically
from xray_client.parsing import parse_json

from .parity import Parity

RECORD_VERSION = 1


@dataclass(frozen=True)
class StepResult:
    """Artefacts and comparison of one step of a build.

    Attributes:
        name: "onnx", "fp16", "plan", "rtx" or "int8".
        against: Artefact that it was compared with.
        artefacts: File, sha256 and bytes of each.
        seconds: Duration, comparison included.
        parity: Comparison; None where the artefact cannot run on this machine.
        details: Facts that only this step has, such as the number of nodes.
        tools: Versions of the packages that made it.
    """

    name: str
    against: str
    artefacts: list[dict[str, Any]]
    seconds: float
    parity: dict[str, Any] | None
    details: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_files(
        cls,
        name: str,
        files: list[Path],
        *,
        against: str,
        seconds: float,
        parity: Parity | None,
        details: dict[str, Any] | None = None,
        tools: tuple[str, ...] = (),
    ) -> StepResult:
        """Describe files on disk, made with these packages."""
        artefacts = [{"file": path.name, "sha256": sha256(path), "bytes": path.stat().st_size} for path in files]
        return cls(
            name,
            against,
            artefacts,
            round(seconds, 1),
            parity.as_dict() if parity else None,
            details or {},
            {tool: installed(tool) for tool in tools},
        )


@dataclass
class BuildRecord:
    """All steps of a build, for the file and the manifest.

    Attributes:
        model: Name of the model, for a reader.
        preprocessing: Fields of the model's `Preprocessing`.
        operating_point: Probability from which a forced choice says Pneumonia.
        band: Probabilities between which the finding is Uncertain.
        calibration_set: Source, size, seed and hash of the set that every step was compared on.
        steps: Results, in the order in which they were made.
        missing: Requested steps that could not be made on this machine, with the reason.
        about: Facts about the model for the manifest and the model card: training data, metrics, operating point,
            hashes of the checkpoint's files.
    """

    model: str
    preprocessing: dict[str, Any]
    operating_point: float
    band: list[float]
    calibration_set: dict[str, Any]
    steps: list[StepResult] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    build_version: int = RECORD_VERSION

    def add(self, step: StepResult) -> None:
        """Add a step; it replaces an earlier one of the same name."""
        self.steps = [*(other for other in self.steps if other.name != step.name), step]
        self.missing.pop(step.name, None)

    def step(self, name: str) -> StepResult | None:
        """Find a step by name."""
        return next((step for step in self.steps if step.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write `build.json`, whole or not at all."""
        write_atomically(folder / BUILD_RECORD_FILE, json.dumps(self.as_dict(), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> BuildRecord:
        """Read the build record of a folder.

        Raises:
            BuildError: There is none, it is damaged, or another release wrote it.
        """
        path = folder / BUILD_RECORD_FILE
        if not path.is_file():
            raise BuildError(f"no {BUILD_RECORD_FILE}", source=str(folder), remedy="`xray-build onnx` starts a build")
        try:
            values = parse_json(path.read_text())
            record = cls(**{**values, "steps": [StepResult(**step) for step in values["steps"]]})
            Preprocessing(**record.preprocessing)
        except (ValueError, TypeError, KeyError) as err:
            raise BuildError(
                f"{BUILD_RECORD_FILE} is damaged: {err!r}", source=str(folder), remedy="build again"
            ) from err
        if record.build_version != RECORD_VERSION:
            raise BuildError(
                f"build version {record.build_version}, this release reads {RECORD_VERSION}", source=str(folder)
            )
        return record

    def check_artefact(self, folder: Path, file: str) -> Path:
        """Return the path of an artefact, after comparing its hash with the recorded one.

        Raises:
            BuildError: The file is missing, or is not the one that was built and compared.
        """
        for step in self.steps:
            for artefact in step.artefacts:
                if artefact["file"] != file:
                    continue
                path = folder / file
                if not path.is_file() or sha256(path) != artefact["sha256"]:
                    raise BuildError(f"{file} is not the file that was built", source=str(folder), remedy="build again")
                return path
        step_name = {ONNX_FILE: "onnx", FP16_FILE: "fp16"}.get(file, file)
        raise BuildError(f"no {file} yet", source=str(folder), remedy=f"`xray-build {step_name}` makes it")


def installed(package: str) -> str:
    """Version of an installed package; "none" where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
