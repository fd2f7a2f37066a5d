"""What a build wrote, and how it was judged: `build.json`, beside the artefacts.

{"build_version": 1, "model": ..., "preprocessing": ..., "operating_point": 0.18, "band": [...],
 "about": {"trained_on", "metrics", ..., "checkpoint": {"model.safetensors": sha256, ...}, "parity", "built_with"},
 "calibration": {"source", "images", "seed", "radiographs", "sha256"},
 "steps": [{"name": "onnx", "against": "PyTorch", "artefacts": [{"file", "sha256", "bytes"}], "seconds",
            "parity": {"images", "probability", "heatmap", "novelty", "decisions_changed", "calibration_sha256"},
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
from xray_client.files import sha256

from .parity import Parity

RECORD_VERSION = 1


@dataclass(frozen=True)
class StepRecord:
    """One step.

    Attributes:
        name: "onnx", "fp16", "plan", "rtx" or "int8".
        against: What it was compared with.
        artefacts: File, sha256 and bytes of each.
        seconds: It took, comparison included.
        parity: The comparison; None where the artefact cannot run on this machine.
        details: What else belongs to the step.
        tools: Versions of what made it.
    """

    name: str
    against: str
    artefacts: list[dict[str, Any]]
    seconds: float
    parity: dict[str, Any] | None
    details: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        files: list[Path],
        *,
        against: str,
        seconds: float,
        parity: Parity | None,
        details: dict[str, Any] | None = None,
        tools: tuple[str, ...] = (),
    ) -> StepRecord:
        """Describe files that lie on disk, made with these packages."""
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
    """All steps of a build.

    Attributes:
        model: What was built, in words.
        preprocessing: The model's record.
        operating_point: Probability from which a forced choice says Pneumonia.
        band: Thresholds of the decision.
        calibration: Of the set that every step was compared on.
        steps: In the order in which they were made.
        missing: Steps that were asked for and could not be made here, and why.
        about: Facts about the model for the manifest and the model card: training data, metrics, operating point,
            hashes of the checkpoint's files.
    """

    model: str
    preprocessing: dict[str, Any]
    operating_point: float
    band: list[float]
    calibration: dict[str, Any]
    steps: list[StepRecord] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    build_version: int = RECORD_VERSION

    def add(self, step: StepRecord) -> None:
        """Put a step in, instead of an earlier one of the same name."""
        self.steps = [*(other for other in self.steps if other.name != step.name), step]
        self.missing.pop(step.name, None)

    def step(self, name: str) -> StepRecord | None:
        """A step by name."""
        return next((step for step in self.steps if step.name == name), None)

    def as_dict(self) -> dict[str, Any]:
        """For the file and the manifest."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write `build.json` in one go."""
        staged = folder / f".{BUILD_RECORD_FILE}"
        staged.write_text(json.dumps(self.as_dict(), indent=2) + "\n")
        staged.replace(folder / BUILD_RECORD_FILE)

    @classmethod
    def read(cls, folder: Path) -> BuildRecord:
        """Read it back.

        Raises:
            BuildError: None there, damaged, another version, or an artefact is not the one that was built.
        """
        path = folder / BUILD_RECORD_FILE
        if not path.is_file():
            raise BuildError(f"no {BUILD_RECORD_FILE}", source=str(folder), remedy="`xray-build onnx` starts a build")
        try:
            values = json.loads(path.read_text())
            record = cls(**{**values, "steps": [StepRecord(**step) for step in values["steps"]]})
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
        """Path of an artefact whose hash is the recorded one.

        Raises:
            BuildError: It is missing, or another file than the one that was built and compared.
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
    """Version of a package; "none" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
