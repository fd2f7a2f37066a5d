"""The configurations of a repository on disk: which version each serves, and how they are pointed at another.

A configuration names the version that is served and the preprocessing that clients must use; the two change together.
So a publisher pins the configurations to the live version before a new one becomes visible, and then replaces each file
by one that names the new version's preprocessing. Whenever the machine stops, each engine serves a version with that
version's own preprocessing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from tritonclient.grpc import model_config_pb2 as pb

from xray_build.errors import BuildError
from xray_client import Preprocessing, contract
from xray_client.files import replace_by_staged, stage_beside, write_atomically

from .card import card_of
from .model_config import CONFIGS_FOLDER, ENGINES, EngineConfig, ServingConfig, fit, model_config, served_version
from .pbtxt import parse_config, to_text, updated_text
from .versions import read_manifest, versions


def configs(repository: Path) -> Iterator[tuple[EngineConfig, Path, pb.ModelConfig]]:
    """Every configuration in the repository with its engine and file, an operator's own in `configs/` included.

    Raises:
        BuildError: A file is not a configuration.
    """
    ours = {repository / contract.MODEL_NAME / engine.file: engine for engine in ENGINES}
    for path in _files(repository):
        try:
            config = parse_config(path.read_text())
        except BuildError as err:
            raise BuildError(err.message, source=str(path), remedy="write it anew or take it from git") from err
        backend, artefact = config.backend or "unknown", config.default_model_filename or "unknown"
        yield ours.get(path) or EngineConfig(path.stem, backend, artefact), path, config


def _files(repository: Path) -> list[Path]:
    model = repository / contract.MODEL_NAME
    ours = [model / engine.file for engine in ENGINES]
    own = sorted(set((model / CONFIGS_FOLDER).glob("*.pbtxt")) - set(ours))
    return [path for path in (*ours, *own) if path.is_file()]


def served(repository: Path) -> dict[str, int]:
    """The version that Triton serves by each configuration after its next start or load; empty without a version."""
    published = versions(repository)
    if not published:
        return {}
    return {engine.name: served_version(config) or published[-1] for engine, _, config in configs(repository)}


def serving_of(repository: Path) -> ServingConfig | None:
    """Preprocessing, version and card of the version that is served; None without one.

    Raises:
        BuildError: Its manifest cannot be read.
    """
    by_engine = served(repository)
    if not by_engine:
        return None
    version = max(by_engine.values())
    manifest = read_manifest(repository / contract.MODEL_NAME / str(version))
    pinned = None if version == versions(repository)[-1] else version
    return ServingConfig(Preprocessing(**manifest["preprocessing"]), version=pinned, card=card_of(manifest))


def current_texts(repository: Path) -> dict[str, str]:
    """Text of each configuration, by its path inside the model's folder."""
    model = repository / contract.MODEL_NAME
    return {path.relative_to(model).as_posix(): path.read_text() for path in _files(repository)}


def texts_for(repository: Path, serving: ServingConfig) -> dict[str, str]:
    """Text of each configuration as a version needs it; what an operator tuned stays, a missing file is generated."""
    texts = {}
    for engine, path, config in configs(repository):
        fit(config, serving)
        texts[engine.file] = updated_text(path.read_text(), config, engine.name)
    for engine in ENGINES:
        if engine.file not in texts:
            texts[engine.file] = to_text(model_config(engine, serving), engine.name)
    return texts


def pinned_texts(repository: Path) -> dict[str, str]:
    """Text of each configuration with the version that it serves now named by its number, instead of as the latest."""
    newest = max(versions(repository), default=None)
    texts = current_texts(repository)
    for engine, _, config in configs(repository):
        if newest is not None and served_version(config) is None:
            config.version_policy.specific.versions[:] = [newest]
            texts[engine.file] = to_text(config, engine.name)
    return texts


def write_texts(repository: Path, texts: Mapping[str, str]) -> None:
    """Write configurations, each in one step; a file that is right already is not touched."""
    for name, text in texts.items():
        write_atomically(repository / contract.MODEL_NAME / name, text)


class StagedTexts:
    """Configurations on disk, hidden beside the files that they are to replace: what can fail has happened before.

    Args:
        repository: Model repository.
        texts: Text of each configuration, by its path inside the model's folder.
    """

    def __init__(self, repository: Path, texts: Mapping[str, str]) -> None:
        self._staged: dict[Path, Path] = {}
        try:
            for name, text in texts.items():
                path = repository / contract.MODEL_NAME / name
                if not path.is_file() or path.read_text() != text:
                    self._staged[path] = stage_beside(path, text.encode())
        except BaseException:
            self.discard()
            raise

    def put_in_place(self) -> None:
        """Replace the configurations, one after the other."""
        for path, staged in self._staged.items():
            replace_by_staged(path, staged)

    def discard(self) -> None:
        """Remove what was not put in place."""
        for staged in self._staged.values():
            staged.unlink(missing_ok=True)
