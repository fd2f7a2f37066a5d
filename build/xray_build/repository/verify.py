"""Check a published version before a server loads it: its files, its configuration, and whether its plan fits here.

A TensorRT plan runs only on the TensorRT release and the GPU architecture that built it. A server that is given another
plan reports it when it starts, which is late.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from xray_build.artefacts import LABELS_FILE, MANIFEST_FILE, PLAN_FILE
from xray_build.errors import BuildError
from xray_client import LABELS, Preprocessing, PreprocessingMismatch, contract
from xray_client.files import sha256

from .card import card_of
from .configurations import configs, served
from .known_answers import KnownAnswers
from .model_config import WARM_UP_FOLDER, EngineConfig, embedded_file, warm_up_file
from .plan_compatibility import Machine, largest_batch_of_plan
from .versions import VersionLog, read_manifest, version_folder


@dataclass(frozen=True, slots=True)
class Problem:
    """A failed check.

    Attributes:
        source: File, configuration or version that was checked.
        message: Description of the problem, with the remedy.
        serious: True if a server would fail to start on it or answer wrongly; False for a note.
    """

    source: str
    message: str
    serious: bool = True


def verify(
    repository: Path, version: int | None = None, *, engine: str = "", machine: Machine | None = None
) -> Verification:
    """Check one version.

    Args:
        repository: Model repository.
        version: Number of the version; None = the one that is served.
        engine: Name of the configuration that is to serve it here; "" = any that this machine can run.
        machine: Machine that a plan would run on; None = this machine.

    Raises:
        BuildError: There is no such version.
    """
    by_engine = served(repository)
    if version is None:
        version = by_engine.get(engine) or max(by_engine.values(), default=0)
    folder = version_folder(repository, version)
    try:
        manifest = read_manifest(folder)
    except BuildError as err:
        return Verification(version, (Problem(err.source, f"{err.message} ({err.remedy})"),))
    problems = [
        *_check_state(repository, version, by_engine),
        *check_files(folder, manifest),
        *_check_manifest(folder, manifest),
    ]
    for configuration, path, config in configs(repository):
        if not engine or configuration.name == engine:
            problems += _check_configuration(folder, manifest, configuration, path, config, engine)
            if by_engine[configuration.name] == version:
                problems += _check_served(repository, manifest, path, config)
    if (folder / PLAN_FILE).exists() and engine in ("", "tensorrt"):
        problems += _check_plan(manifest, machine or Machine.here(), wanted=engine == "tensorrt")
    return Verification(version, tuple(problems))


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of checking a version.

    Attributes:
        version: Number of the version.
        problems: The failed checks, in the order of the checks.
    """

    version: int
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """True if a server may load the version."""
        return not any(problem.serious for problem in self.problems)


def _check_state(repository: Path, version: int, by_engine: Mapping[str, int]) -> Iterator[Problem]:
    """Note a withdrawn version and an interrupted publisher; neither keeps a server from loading the version."""
    if reason := VersionLog.load(repository).withdrawn.get(version):
        yield Problem(str(version), f"was withdrawn: {reason}", serious=False)
    if len(set(by_engine.values())) > 1:
        each = ", ".join(f"{name} {live}" for name, live in by_engine.items())
        what = f"serve different versions ({each}): a publisher was interrupted; publish, or roll back to one of them"
        yield Problem("configurations", what, serious=False)


def check_files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    """Check that every published file is unchanged, and that no other file is there."""
    recorded = manifest["files"]
    for name, digest in recorded.items():
        path = folder / name
        if not path.is_file():
            yield Problem(str(path), "is missing: publish again")
        elif sha256(path) != digest:
            yield Problem(str(path), "is not what was published: publish again, and find out who edits versions")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in recorded and name != MANIFEST_FILE and "__pycache__" not in name:
            yield Problem(str(path), "was not published: move it away")


def _check_manifest(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Problem]:
    if manifest.get("labels") != list(LABELS):
        yield Problem(
            str(folder / MANIFEST_FILE), f"labels {manifest.get('labels')}, the contract's are {list(LABELS)}"
        )
    try:
        Preprocessing(**manifest["preprocessing"])
    except (PreprocessingMismatch, TypeError) as err:
        yield Problem(str(folder / MANIFEST_FILE), f"its preprocessing cannot be done here: {err}")
    try:
        KnownAnswers.load(folder)
    except BuildError as err:
        yield Problem(str(folder), f"{err.message} ({err.remedy})")


def _check_configuration(
    folder: Path,
    manifest: Mapping[str, Any],
    configuration: EngineConfig,
    path: Path,
    config: pb.ModelConfig,
    engine: str,
) -> Iterator[Problem]:
    """Check that an engine finds the files that it loads."""
    needs = {config.default_model_filename, embedded_file(config)} - {""}
    largest = largest_batch_of_plan(manifest.get("build", {}))
    if config.default_model_filename == PLAN_FILE in manifest["files"] and 0 < largest < config.max_batch_size:
        what = f"asks for batches of {config.max_batch_size}, the plan takes {largest}: lower it, or build again"
        yield Problem(str(path), what)
    missing = sorted(name for name in needs if name not in manifest["files"])
    if missing:
        names = " and ".join(missing)
        what = f"version {folder.name} has no {names}, so engine {configuration.name} cannot serve it"
        yield Problem(str(path), what, serious=bool(engine))


def _check_served(
    repository: Path, manifest: Mapping[str, Any], path: Path, config: pb.ModelConfig
) -> Iterator[Problem]:
    """Check that the configuration of the served version agrees with its manifest."""
    model = repository / contract.MODEL_NAME
    text = config.parameters[contract.PREPROCESSING_PARAMETER].string_value
    try:
        preprocessing = Preprocessing.from_json(text)
        if preprocessing != Preprocessing(**manifest["preprocessing"]):
            yield Problem(
                str(path), f"says preprocessing {text}, the manifest {manifest['preprocessing']}: publish again"
            )
        card = card_of(manifest)
        if config.parameters[contract.CARD_PARAMETER].string_value != (card.to_json() if card else ""):
            what = "shows the model card of another version: `python -m xray_build.repository` writes this one's"
            yield Problem(str(path), what, serious=False)
        warm_up = model / WARM_UP_FOLDER / warm_up_file(preprocessing.size)
        if config.model_warmup and (not warm_up.is_file() or warm_up.stat().st_size < preprocessing.size**2):
            yield Problem(str(warm_up), f"{path.name} warms up with it, and it is missing or cut short: publish again")
    except (PreprocessingMismatch, TypeError) as err:
        yield Problem(str(path), str(err))
    labels = model / LABELS_FILE
    if not labels.is_file() or labels.read_text().split() != list(LABELS):
        yield Problem(str(labels), f"is not {', '.join(LABELS)}: take it from git")


def _check_plan(manifest: Mapping[str, Any], here: Machine, *, wanted: bool) -> Iterator[Problem]:
    """Check that TensorRT can load the plan on this machine."""
    plan = Machine.of_plan(manifest.get("build", {}))
    if plan is None:
        yield Problem(PLAN_FILE, "the manifest does not say what it was built for: build it again")
        return
    if not here.gpu and not wanted:
        built = f"built by TensorRT {plan.tensorrt} for {plan.gpu} (compute capability {plan.compute_capability})"
        yield Problem(PLAN_FILE, f"{built}; this machine has no GPU to serve it with", serious=False)
        return
    again = "build the plan again inside the container that serves"
    mismatches = {
        "TensorRT": (plan.tensorrt, here.tensorrt, _release(plan.tensorrt, 3) != _release(here.tensorrt, 3)),
        # A driver serves every CUDA up to its own.
        "CUDA": (plan.cuda, here.cuda, _release(plan.cuda, 1) > _release(here.cuda, 1)),
        "compute capability": (
            f"{plan.compute_capability} ({plan.gpu})",
            f"{here.compute_capability} ({here.gpu})" if here.gpu else "",
            plan.compute_capability != here.compute_capability,
        ),
    }
    for what, (built, found, differ) in mismatches.items():
        if differ:
            yield Problem(PLAN_FILE, f"was built for {what} {built}, this machine has {found or 'none'}: {again}")


def _release(version: str, parts: int) -> tuple[int, ...]:
    """The first numbers of a release; empty for an unknown one."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:parts])
