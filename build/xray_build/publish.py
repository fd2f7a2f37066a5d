"""Publish a version: complete, checked and hashed in a hidden folder, then made visible by one rename.

A version is never edited, and whatever fails before the rename leaves the live versions as they were. The order of the
last two steps is on purpose: the configurations are brought up to date first, and a model refuses to load with a
configuration whose preprocessing is not the version's own, so a crash in between can stop an answer, never falsify one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xray_client import LABELS, RESEARCH_USE, Preprocessing, contract

from ._errors import BuildError
from .repository import ServingConfig, write_configs

MANIFEST_FILE = "manifest.json"
MANIFEST_VERSION = 1
_STAGING_PREFIX = ".staging-"
_EMBEDDED_MODEL = Path(__file__).parent / "embedded" / "model.py"


@dataclass(frozen=True)
class Publication:
    """A version that is now visible to a server."""

    version: int
    folder: Path


@dataclass(frozen=True)
class Stage:
    """A version in the making; put artefacts into `folder`, then `publish`."""

    repository: Path
    folder: Path

    def publish(self, *, preprocessing: Preprocessing, about: dict[str, Any]) -> Publication:
        """Add the server's model code and the manifest, then make the version visible.

        Args:
            preprocessing: Record of the model; written into the served parameters.
            about: What else the manifest says: training data, metrics, parity, tools.

        Raises:
            BuildError: The repository cannot be written.
        """
        model = self.repository / contract.MODEL_NAME
        shutil.copyfile(_EMBEDDED_MODEL, self.folder / "model.py")
        manifest = {
            "manifest_version": MANIFEST_VERSION,
            "model": contract.MODEL_NAME,
            "labels": list(LABELS),
            "preprocessing": asdict(preprocessing),
            "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": {path.name: _sha256(path) for path in sorted(self.folder.iterdir())},
            "notice": RESEARCH_USE,
            **about,
        }
        (self.folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")
        for path in [*self.folder.iterdir(), self.folder]:
            _sync(path)
        version = max(versions(self.repository), default=0) + 1
        try:
            write_configs(self.repository, ServingConfig(preprocessing=preprocessing))
            self.folder.rename(model / str(version))
        except OSError as err:
            raise BuildError(f"cannot publish: {err.strerror}", source=str(model)) from err
        _sync(model)
        return Publication(version, model / str(version))


@contextmanager
def staged_version(repository: Path) -> Iterator[Stage]:
    """A hidden folder for the next version, removed again unless it is published; one publisher at a time.

    Raises:
        BuildError: Another publisher is at work, or the repository cannot be written.
    """
    model = repository / contract.MODEL_NAME
    try:
        model.mkdir(parents=True, exist_ok=True)
        lock = (model / ".lock").open("w")
    except OSError as err:
        raise BuildError(f"cannot be written: {err.strerror}", source=str(model)) from err
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise BuildError(
                "another build is publishing here", source=str(model), remedy="wait for it to finish, then try again"
            ) from err
        # We hold the lock, so whatever is staged was left by a build that was killed.
        for leftover in model.glob(f"{_STAGING_PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        folder = model / f"{_STAGING_PREFIX}{os.getpid()}"
        folder.mkdir()
        try:
            yield Stage(repository, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def versions(repository: Path) -> list[int]:
    """Published versions, ascending."""
    model = repository / contract.MODEL_NAME
    if not model.is_dir():
        return []
    return sorted(int(child.name) for child in model.iterdir() if child.is_dir() and child.name.isdigit())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
