"""From one served version to another by rewriting the configurations, each file at every moment a whole and valid one.

A configuration names both the version that is served and the preprocessing that clients must use. Where a new version
wants another preprocessing, the two must change together: so the configurations are first pinned to the version that
is live, then the new version is made visible, then each file is replaced by one that names the new preprocessing.
Whenever the machine stops, each engine serves a version with that version's own preprocessing.
"""

from __future__ import annotations

from pathlib import Path

from xray_client import ModelCard, Preprocessing, contract
from xray_client.files import replace_by_staged, stage_beside, write_atomically

from .model_config import (
    ENGINES,
    EngineConfig,
    ServingConfig,
    config_text,
    fit,
    fitted_text,
    parse_config,
    pb,
    served_version,
    text_of,
)
from .versions import configs, versions


class Switch:
    """The configurations of one repository as they are, and as another version wants them.

    Args:
        repository: Model repository.
        preprocessing: The other version's.
        version: Its number where the configurations must be pinned to it; None = it is to be the latest.
        card: What it says of itself.

    Attributes:
        wanted: Text of each configuration as it is to be, by its path inside the model's folder.
        changed: Files that are there and have to be changed.

    Raises:
        BuildError: A file that is there is not a configuration.
    """

    def __init__(
        self, repository: Path, preprocessing: Preprocessing, version: int | None, card: ModelCard | None
    ) -> None:
        self._model = repository / contract.MODEL_NAME
        self._newest = max(versions(repository), default=None)
        self._engines: dict[str, EngineConfig] = {}
        self._before: dict[str, str] = {}
        self.wanted: dict[str, str] = {}
        self._staged: dict[Path, Path] = {}
        for engine, path, config in configs(repository):
            self._engines[engine.file] = engine
            self._before[engine.file] = path.read_text()
            fitted = pb.ModelConfig()
            fitted.CopyFrom(config)
            fit(fitted, preprocessing, version, card)
            self.wanted[engine.file] = fitted_text(self._before[engine.file], fitted, engine)
        serving = ServingConfig(preprocessing, version=version, card=card)
        for engine in ENGINES:
            self.wanted.setdefault(engine.file, config_text(engine, serving))
        self.changed = [self._model / name for name, text in self._before.items() if self.wanted[name] != text]

    def prepare(self) -> None:
        """Before the new version becomes visible: what is live stays live, and what completes is on the disk."""
        if self._newest is None:
            self._write(self.wanted)  # there is nothing to keep alive
        elif self.changed:
            self._write(self._pinned())
        self.stage()

    def stage(self) -> None:
        """Have on the disk, hidden, what `complete` will put in place."""
        for name, text in self.wanted.items():
            path = self._model / name
            if not path.is_file() or path.read_text() != text:
                self._staged[path] = stage_beside(path, text.encode())

    def complete(self) -> None:
        """After it has become visible: it is what is served."""
        for path, staged in self._staged.items():
            replace_by_staged(path, staged)

    def retreat(self) -> None:
        """Before a version that was made visible disappears again: what was live before is served."""
        self._write(self._pinned())

    def restore(self) -> None:
        """Everything as it was."""
        self._write(self._before)
        for staged in self._staged.values():
            staged.unlink(missing_ok=True)

    def _pinned(self) -> dict[str, str]:
        """The configurations as they were, naming the version that they served by its number."""
        pinned = {}
        for name, text in self._before.items():
            config = parse_config(text)
            if served_version(config) is None and self._newest is not None:
                config.version_policy.specific.versions[:] = [self._newest]
                text = text_of(config, self._engines[name])
            pinned[name] = text
        return pinned

    def _write(self, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            write_atomically(self._model / name, text)
