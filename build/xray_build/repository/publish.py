"""Publish a version: complete, checked and hashed in a hidden folder, then made visible by one rename.

A version is never edited and its number never given twice. Whatever fails, or whenever the machine stops, what is live
stays live with the configuration that belongs to it. With a running server the version is tried beside the live one
first, then loaded over it; if it does not answer as recorded it disappears again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xray_build.artefacts import BUILD_RECORD_FILE, COUNTING_CODE_FILE, MANIFEST_FILE, MODEL_CODE_FILE
from xray_build.errors import BuildError
from xray_client import LABELS, RESEARCH_USE, Preprocessing, contract
from xray_client.files import sha256, sync

from . import golden as known_answers
from ._switch import Switch
from .atomic import locked, writing
from .card import card_of
from .ensemble import clear_front_leftovers, write_front
from .golden import Known
from .remote import CANDIDATE, DEFAULT_TIMEOUT_S, Access, LiveServer, write_companions
from .verify import changed_files
from .versions import MANIFEST_VERSION, History, existing, read_manifest, served, versions

__all__ = ["Publication", "Stage", "rollback", "staged_version", "versions"]

LOCK_WAIT_S = 600.0
_STAGING_PREFIX = ".staging-"
_EMBEDDED_MODEL = Path(__file__).parents[1] / "backends" / "embedded" / MODEL_CODE_FILE
_COUNTING = Path(__file__).parents[1] / "backends" / "metrics" / COUNTING_CODE_FILE


@dataclass(frozen=True)
class Publication:
    """A version that is now visible to a server.

    Attributes:
        version: Its number.
        folder: Where it is.
        reconfigured: Configurations that were there and had to be changed for it.
    """

    version: int
    folder: Path
    reconfigured: tuple[Path, ...] = ()

    def __str__(self) -> str:
        changed = f"; changed for it: {', '.join(path.name for path in self.reconfigured)}" if self.reconfigured else ""
        return f"published version {self.version}: {self.folder}{changed}"


@dataclass(frozen=True)
class Stage:
    """A version in the making; put artefacts into `folder`, then `publish`."""

    repository: Path
    folder: Path

    def publish(
        self,
        *,
        preprocessing: Preprocessing,
        about: dict[str, Any],
        images: npt.NDArray[np.uint8] | None = None,
        url: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        access: Access | None = None,
    ) -> Publication:
        """Add the server's model code, known answers and the manifest, then make the version visible.

        Args:
            preprocessing: Record of the model; written into the served parameters.
            about: What else the manifest says: training data, metrics, parity, tools.
            images: Prepared radiographs to keep known answers of, uint8 (k, 1, s, s); None = those of a `known.npz` in
                the folder, else a drawn chest.
            url: "host:port" of a running Triton that serves this repository; None = whoever starts one next.
            timeout_s: Seconds that the server may take to load it, and to answer.
            access: TLS, token and headers for it; None = plain.

        Raises:
            BuildError: The graph does not run, the repository cannot be written, or the server does not answer as
                recorded. What was live is live.
        """
        with writing(self.folder):
            check_build(self.folder)
            shutil.copyfile(_EMBEDDED_MODEL, self.folder / MODEL_CODE_FILE)
            shutil.copyfile(_COUNTING, self.folder / COUNTING_CODE_FILE)
            known = known_answers.record(self.folder, images, preprocessing)
            self._write_manifest(preprocessing, about)
            for path in [*self.folder.rglob("*"), self.folder]:
                sync(path)
        model = self.repository / contract.MODEL_NAME
        with ExitStack() as held:
            server = LiveServer(url, timeout_s, access) if url else None
            if server:
                held.callback(server.close)
            held.enter_context(locked(model, wait_s=LOCK_WAIT_S))
            held.enter_context(writing(model))
            switch = Switch(self.repository, preprocessing, None, card_of(about))
            if server:
                server.try_out(self.repository, self.folder, switch.wanted, known)
            return self._make_visible(switch, known, preprocessing, server)

    def _write_manifest(self, preprocessing: Preprocessing, about: dict[str, Any]) -> None:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
        # The manifest has the facts about the model at its top.
        record = {name: value for name, value in read_build(self.folder).items() if name != "about"}
        own = {
            "manifest_version": MANIFEST_VERSION,
            "model": contract.MODEL_NAME,
            "labels": list(LABELS),
            "preprocessing": asdict(preprocessing),
            "published": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": {path.relative_to(self.folder).as_posix(): sha256(path) for path in files},
            "notice": RESEARCH_USE,
            **({"build": record} if record else {}),
        }
        manifest = own | {name: value for name, value in about.items() if name not in own}
        (self.folder / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n")

    def _make_visible(
        self, switch: Switch, known: Known, preprocessing: Preprocessing, server: LiveServer | None
    ) -> Publication:
        """The step that counts; the lock is held."""
        model = self.repository / contract.MODEL_NAME
        history = History.load(self.repository)
        live = max(served(self.repository).values(), default=None)
        version = history.highest + 1
        # Before the rename: a number may be skipped after a crash, never given twice.
        history.with_number(version).save(self.repository)
        folder = model / str(version)
        try:
            write_companions(model, known)
            write_front(self.repository, only_missing=True)
            switch.prepare()
            self.folder.rename(folder)
            sync(model)
            switch.complete()
            if server:
                server.serve(known, version, preprocessing)
        except BaseException as err:
            self._take_back(folder, switch)
            state = _served_again(server, model, live) if server else ""
            if state and isinstance(err, BuildError):
                raise BuildError(f"{err.message}; {state}", source=err.source, remedy=err.remedy) from err
            raise
        return Publication(version, folder, tuple(switch.changed))

    def _take_back(self, folder: Path, switch: Switch) -> None:
        """As it was before, on the disk."""
        if folder.exists():
            switch.retreat()
            folder.rename(self.folder)
            sync(folder.parent)
        switch.restore()


def _served_again(server: LiveServer, model: Path, live: int | None) -> str:
    """Load the version that was live, should another have taken over meanwhile; what is served now."""
    if not live:
        return "nothing is served"
    try:
        before = Preprocessing(**read_manifest(model / str(live))["preprocessing"])
        server.serve(Known.load(model / str(live)), live, before)
    except BuildError as err:
        return f"and whether version {live} still serves is not known: {err.message}"
    return f"version {live} still serves"


def read_build(folder: Path) -> dict[str, Any]:
    """The record of a build's steps, from its folder; empty where there is none."""
    path = folder / BUILD_RECORD_FILE
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as err:
        raise BuildError(f"cannot be read: {err}", source=str(path), remedy="build again") from err


def check_build(folder: Path) -> None:
    """Refuse artefacts that are not those that the build compared, step by step.

    Raises:
        BuildError: One has another hash than `build.json` says.
    """
    for step in read_build(folder).get("steps", []):
        for artefact in step.get("artefacts", []):
            path = folder / str(artefact.get("file"))
            if path.is_file() and sha256(path) != artefact.get("sha256"):
                raise BuildError("is not the file that was built", source=str(path), remedy="build it again")


@contextmanager
def staged_version(repository: Path) -> Iterator[Stage]:
    """A hidden folder for the next version, removed again unless it is published. Any number of builds at a time.

    Raises:
        BuildError: The repository cannot be written.
    """
    model = repository / contract.MODEL_NAME
    with writing(model):
        model.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with locked(model, wait_s=LOCK_WAIT_S), writing(model):
            _clear_leftovers(repository)
            folder = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=model))
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.chmod(0o755)  # the server may be another user
            held.enter_context(_marked_in_use(folder))
        yield Stage(repository, folder)


def _clear_leftovers(repository: Path) -> None:
    """Remove what publishers left that were killed: nobody holds it any more. Under the lock."""
    for leftover in (repository / contract.MODEL_NAME).glob(f"{_STAGING_PREFIX}*"):
        try:
            with _marked_in_use(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:  # a build that is still at work
            continue
    for staged in (repository / contract.MODEL_NAME).rglob(".*.new"):
        staged.unlink()
    shutil.rmtree(repository / CANDIDATE, ignore_errors=True)
    clear_front_leftovers(repository)


@contextmanager
def _marked_in_use(folder: Path) -> Iterator[None]:
    """Hold the folder itself, for as long as this process lives; `BlockingIOError` where somebody else does."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def rollback(
    repository: Path,
    *,
    to: int | None = None,
    url: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    access: Access | None = None,
) -> int:
    """Serve an earlier version again, by the version policy of the configurations; its files are not touched.

    What is newer counts as withdrawn: a later rollback passes it over. The next publication is served in its turn.

    Args:
        repository: Model repository.
        to: Version to go back to (or forward again); None = the newest before the live one that was not withdrawn.
        url: As for `Stage.publish`.
        timeout_s: Likewise.
        access: Likewise.

    Returns:
        The version that is served now.

    Raises:
        BuildError: There is no such version, its files have changed, or the server does not answer as recorded; what
            was live is live.
    """
    model = repository / contract.MODEL_NAME
    with ExitStack() as held:
        server = LiveServer(url, timeout_s, access) if url else None
        if server:
            held.callback(server.close)
        held.enter_context(locked(model, wait_s=LOCK_WAIT_S))
        held.enter_context(writing(model))
        history, there = History.load(repository), versions(repository)
        live = max(served(repository).values(), default=None)
        if to is None:
            to = history.before(live, there) if live else None
            if to is None:
                raise BuildError("there is no version to go back to", source=str(model), remedy="publish one")
        folder = existing(repository, to)
        _check_files(folder)
        known = Known.load(folder)
        manifest = read_manifest(folder)
        preprocessing = Preprocessing(**manifest["preprocessing"])
        switch = Switch(repository, preprocessing, None if to == there[-1] else to, card_of(manifest))
        write_companions(model, known)
        switch.stage()
        history.rolled_back(to, there).save(repository)
        try:
            switch.complete()
            if server:
                server.serve(known, to, preprocessing)
        except BaseException as err:
            switch.restore()
            history.save(repository)
            state = _served_again(server, model, live) if server else ""
            if state and isinstance(err, BuildError):
                raise BuildError(f"{err.message}; {state}", source=err.source, remedy=err.remedy) from err
            raise
        return to


def _check_files(folder: Path) -> None:
    for finding in changed_files(folder, read_manifest(folder)):
        raise BuildError(finding.what, source=finding.where, remedy="or go back to another version")
