"""Publish a version: complete, checked and hashed in a hidden folder, then made visible by one rename.

A version is never edited and its number never given twice. Whatever fails, or whenever the machine stops, the live
version stays live with the configuration that belongs to it. With a running server the version is first checked beside
the live one, then loaded over it; if it does not give its known answers, it disappears again.
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

from xray_build.artefacts import (
    BUILD_RECORD_FILE,
    COUNTING_CODE_FILE,
    MANIFEST_FILE,
    MODEL_CODE_FILE,
    THREADS_CODE_FILE,
)
from xray_build.errors import BuildError
from xray_client import LABELS, RESEARCH_USE, Preprocessing, contract
from xray_client.files import sha256, sync
from xray_client.parsing import parse_json

from .atomic import locked, writing
from .card import card_of
from .configurations import StagedTexts, current_texts, pinned_texts, served, texts_for, write_texts
from .ensemble import clear_ensemble_leftovers, write_ensemble
from .known_answers import KnownAnswers, answer_known_radiographs
from .model_config import ServingConfig
from .remote import CANDIDATE, DEFAULT_TIMEOUT_S, Access, LiveServer, write_referenced_files
from .verify import check_files
from .versions import MANIFEST_VERSION, VersionLog, read_manifest, version_folder, versions

__all__ = ["Publication", "Stage", "rollback", "staged_version", "versions"]

LOCK_WAIT_S = 600.0
_STAGING_PREFIX = ".staging-"
_EMBEDDED_MODEL = Path(__file__).parents[1] / "backends" / "embedded" / MODEL_CODE_FILE
_COUNTING = Path(__file__).parents[1] / "backends" / "metrics" / COUNTING_CODE_FILE
_THREADS = Path(__file__).parents[1] / "backends" / "embedded" / THREADS_CODE_FILE


@dataclass(frozen=True)
class Publication:
    """A version that is now visible to a server.

    Attributes:
        version: Number of the version.
        folder: Folder of the version.
        reconfigured: Existing configurations that were changed for it.
    """

    version: int
    folder: Path
    reconfigured: tuple[Path, ...] = ()

    def __str__(self) -> str:
        changed = f"; changed for it: {', '.join(path.name for path in self.reconfigured)}" if self.reconfigured else ""
        return f"published version {self.version}: {self.folder}{changed}"


@dataclass(frozen=True)
class Stage:
    """A hidden folder for a version: put artefacts into `folder`, then `publish`."""

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
            preprocessing: Preprocessing of the model; written into the served parameters.
            about: Further entries of the manifest: training data, metrics, parity, tools.
            images: Prepared radiographs for the known answers, uint8 (k, 1, s, s); None = those of a `known.npz` in
                the folder, else a drawn chest.
            url: "host:port" of a running Triton that serves this repository; None = a server that is started later.
            timeout_s: Limit on the load and on the wait for an answer, seconds.
            access: TLS, token and headers of the server; None = a plain connection.

        Raises:
            BuildError: The graph does not run, the repository cannot be written, the server's live version has another
                preprocessing, or the server does not give the known answers. The live version stays live.
        """
        with writing(self.folder):
            check_build(self.folder)
            shutil.copyfile(_EMBEDDED_MODEL, self.folder / MODEL_CODE_FILE)
            shutil.copyfile(_COUNTING, self.folder / COUNTING_CODE_FILE)
            shutil.copyfile(_THREADS, self.folder / THREADS_CODE_FILE)
            known = answer_known_radiographs(self.folder, images, preprocessing)
            self._write_manifest(preprocessing, about)
            for path in [*self.folder.rglob("*"), self.folder]:
                sync(path)
        with _exclusive(self.repository, url, timeout_s, access) as server:
            wanted = texts_for(self.repository, ServingConfig(preprocessing, card=card_of(about)))
            if server:
                server.require_preprocessing(preprocessing)
                server.check_candidate(self.repository, self.folder, wanted, known)
            return self._make_visible(wanted, known, server)

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

    def _make_visible(self, wanted: dict[str, str], known: KnownAnswers, server: LiveServer | None) -> Publication:
        """Give the version its number and make it the live one; the lock is held.

        Args:
            wanted: Text of each configuration for this version.
            known: Known answers of this version.
            server: Server to load it into; None = no server.
        """
        model = self.repository / contract.MODEL_NAME
        log, before = VersionLog.load(self.repository), current_texts(self.repository)
        live = max(served(self.repository).values(), default=None)
        changed = [name for name, text in before.items() if wanted[name] != text]
        # Until the new version is configured, the live one stays live. The first version needs its own configuration.
        interim = before
        if not versions(self.repository):
            interim = wanted
        elif changed:
            interim = pinned_texts(self.repository)
        version = log.highest + 1
        # Before the rename: a number may be skipped after a crash, never given twice.
        log.with_number(version).save(self.repository)
        folder = model / str(version)
        with ExitStack() as undo:
            undo.callback(write_texts, self.repository, before)
            write_referenced_files(model, known)
            write_ensemble(self.repository, only_missing=True)
            write_texts(self.repository, interim)
            staged = StagedTexts(self.repository, wanted)
            undo.callback(staged.discard)
            undo.callback(self._hide, folder, interim)
            self.folder.rename(folder)
            sync(model)
            staged.put_in_place()
            with _live_again_on_error(server, self.repository, live, undo):
                if server:
                    server.serve(known, version)
            undo.pop_all()
        return Publication(version, folder, tuple(model / name for name in changed))

    def _hide(self, folder: Path, interim: dict[str, str]) -> None:
        """Take a version that became visible back into the staging folder, after the live one is configured again."""
        if folder.exists():
            write_texts(self.repository, interim)
            folder.rename(self.folder)
            sync(folder.parent)


@contextmanager
def _live_again_on_error(
    server: LiveServer | None, repository: Path, live: int | None, undo: ExitStack
) -> Iterator[None]:
    """On an error, undo what was written and load the live version again; a `BuildError` then names what is served."""
    try:
        yield
    except BaseException as err:
        undo.close()
        state = _load_again(server, repository, live) if server else ""
        if state and isinstance(err, BuildError):
            raise BuildError(f"{err.message}; {state}", source=err.source, remedy=err.remedy) from err
        raise


def _load_again(server: LiveServer, repository: Path, live: int | None) -> str:
    """Load the version that was live, in case another has taken over; return which version is served now."""
    if not live:
        return "nothing is served"
    try:
        server.serve(KnownAnswers.load(repository / contract.MODEL_NAME / str(live)), live)
    except BuildError as err:
        return f"and whether version {live} still serves is not known: {err.message}"
    return f"version {live} still serves"


def read_build(folder: Path) -> dict[str, Any]:
    """Read the build record in a build's folder; empty if it has none."""
    path = folder / BUILD_RECORD_FILE
    if not path.exists():
        return {}
    try:
        return dict(parse_json(path.read_text()))
    except (OSError, ValueError, TypeError) as err:
        raise BuildError(f"cannot be read: {err}", source=str(path), remedy="build again") from err


def check_build(folder: Path) -> None:
    """Refuse artefacts that are not the ones that the build compared.

    Raises:
        BuildError: An artefact has another hash than in `build.json`.
    """
    for step in read_build(folder).get("steps", []):
        for artefact in step.get("artefacts", []):
            path = folder / str(artefact.get("file"))
            if path.is_file() and sha256(path) != artefact.get("sha256"):
                raise BuildError("is not the file that was built", source=str(path), remedy="build it again")


@contextmanager
def staged_version(repository: Path) -> Iterator[Stage]:
    """Make a hidden folder for the next version, and remove it unless it is published. Builds may run side by side.

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
    """Remove what killed publishers left, which nobody holds any more. Call it under the lock."""
    for leftover in (repository / contract.MODEL_NAME).glob(f"{_STAGING_PREFIX}*"):
        try:
            with _marked_in_use(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError:  # a build that is still at work
            continue
    for staged in (repository / contract.MODEL_NAME).rglob(".*.new"):
        staged.unlink()
    shutil.rmtree(repository / CANDIDATE, ignore_errors=True)
    clear_ensemble_leftovers(repository)


@contextmanager
def _marked_in_use(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself for as long as this process lives.

    Raises:
        BlockingIOError: Another publisher holds it.
    """
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
    """Serve an earlier version again by the version policy of the configurations; its files are not touched.

    Every newer version counts as withdrawn: a later rollback passes it over. The next publication is served again.

    Args:
        repository: Model repository.
        to: Version to serve, an older or a newer one; None = the newest before the live one that was not withdrawn.
        url: As for `Stage.publish`.
        timeout_s: As for `Stage.publish`.
        access: As for `Stage.publish`.

    Returns:
        The version that is served now.

    Raises:
        BuildError: There is no such version, its files have changed, the server's live version has another
            preprocessing, or the server does not give the known answers. The live version stays live.
    """
    model = repository / contract.MODEL_NAME
    with _exclusive(repository, url, timeout_s, access) as server:
        log, published = VersionLog.load(repository), versions(repository)
        live = max(served(repository).values(), default=None)
        if to is None:
            to = log.previous(live, published) if live else None
            if to is None:
                raise BuildError("there is no version to go back to", source=str(model), remedy="publish one")
        folder = version_folder(repository, to)
        _require_unchanged(folder)
        known, manifest = KnownAnswers.load(folder), read_manifest(folder)
        preprocessing = Preprocessing(**manifest["preprocessing"])
        if server:
            server.require_preprocessing(preprocessing)
        pinned = None if to == published[-1] else to
        serving = ServingConfig(preprocessing, version=pinned, card=card_of(manifest))
        before = current_texts(repository)
        with ExitStack() as undo:
            write_referenced_files(model, known)
            staged = StagedTexts(repository, texts_for(repository, serving))
            undo.callback(staged.discard)
            log.rolled_back(to, published).save(repository)
            undo.callback(log.save, repository)
            undo.callback(write_texts, repository, before)
            staged.put_in_place()
            with _live_again_on_error(server, repository, live, undo):
                if server:
                    server.serve(known, to)
            undo.pop_all()
        return to


@contextmanager
def _exclusive(
    repository: Path, url: str | None, timeout_s: float, access: Access | None
) -> Iterator[LiveServer | None]:
    """Hold the repository's lock, connected to the server at `url`; errors of the disk become `BuildError`s."""
    model = repository / contract.MODEL_NAME
    with ExitStack() as held:
        server = LiveServer(url, timeout_s, access) if url else None
        if server:
            held.callback(server.close)
        held.enter_context(locked(model, wait_s=LOCK_WAIT_S))
        held.enter_context(writing(model))
        yield server


def _require_unchanged(folder: Path) -> None:
    for problem in check_files(folder, read_manifest(folder)):
        raise BuildError(problem.message, source=problem.source, remedy="or go back to another version")
