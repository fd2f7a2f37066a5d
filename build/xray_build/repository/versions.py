"""What a model folder holds: its versions, which of them is served, and which were withdrawn.

Versions are folders; which is served stands in the configurations, where Triton reads it. What neither can tell is kept
in `versions.json`: the highest number ever given, so that none is given twice, and the versions that were rolled back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xray_build.artefacts import MANIFEST_FILE, VERSION_LOG_FILE
from xray_build.errors import BuildError
from xray_client import Preprocessing, contract
from xray_client.files import write_atomically

from .card import card_of
from .model_config import CONFIGS_FOLDER, ENGINES, EngineConfig, ServingConfig, parse_config, pb, served_version

MANIFEST_VERSION = 1


def versions(repository: Path) -> list[int]:
    """Published versions, ascending."""
    model = repository / contract.MODEL_NAME
    if not model.is_dir():
        return []
    # As Triton counts: no leading zero.
    return sorted(int(c.name) for c in model.iterdir() if re.fullmatch(r"[1-9][0-9]*", c.name) and c.is_dir())


def existing(repository: Path, version: int) -> Path:
    """Folder of a published version; `BuildError` where there is none."""
    if version not in (there := versions(repository)):
        has = f"it has {', '.join(map(str, there))}" if there else "it has none"
        raise BuildError(f"there is no version {version}", source=str(repository / contract.MODEL_NAME), remedy=has)
    return repository / contract.MODEL_NAME / str(version)


def read_manifest(folder: Path) -> dict[str, Any]:
    """A version's manifest; `BuildError` where it is missing or damaged."""
    path = folder / MANIFEST_FILE
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["preprocessing"], dict):
            raise ValueError("files and preprocessing are not there")
    except (OSError, ValueError, KeyError, TypeError) as err:
        what = err.strerror if isinstance(err, OSError) else repr(err)
        raise BuildError(f"the manifest cannot be read: {what}", source=str(path), remedy="publish again") from err
    if manifest.get("manifest_version") != MANIFEST_VERSION:
        raise BuildError(
            f"manifest version {manifest.get('manifest_version')}, this release reads {MANIFEST_VERSION}",
            source=str(path),
            remedy="use the release that published it",
        )
    return dict(manifest)


def configs(repository: Path) -> Iterator[tuple[EngineConfig, Path, pb.ModelConfig]]:
    """Every configuration that is there, an operator's own in `configs/` too, with its file.

    Raises:
        BuildError: A file is no configuration.
    """
    model = repository / contract.MODEL_NAME
    ours = {model / engine.file: engine for engine in ENGINES}
    for path in [*ours, *sorted(set((model / CONFIGS_FOLDER).glob("*.pbtxt")) - ours.keys())]:
        if not path.is_file():
            continue
        try:
            config = parse_config(path.read_text())
        except BuildError as err:
            raise BuildError(err.message, source=str(path), remedy="write it anew or take it from git") from err
        backend, artefact = config.backend or "unknown", config.default_model_filename or "unknown"
        yield ours.get(path) or EngineConfig(path.stem, backend, artefact), path, config


def served(repository: Path) -> dict[str, int]:
    """The version that Triton would serve by each configuration, after its next start or load."""
    there = versions(repository)
    if not there:
        return {}
    return {engine.name: served_version(config) or there[-1] for engine, _, config in configs(repository)}


def serving_of(repository: Path) -> ServingConfig | None:
    """How the version that is served wants to be served; None where none is.

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


@dataclass(frozen=True)
class History:
    """What `versions.json` says.

    Attributes:
        highest: The highest number that was ever given; 0 = none.
        withdrawn: Versions that are not to be gone back to, and why.
    """

    highest: int = 0
    withdrawn: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, repository: Path) -> History:
        """Read it; where there is none yet, what the folders tell."""
        path = repository / contract.MODEL_NAME / VERSION_LOG_FILE
        highest = max(versions(repository), default=0)
        if not path.is_file():
            return cls(highest)
        try:
            values = json.loads(path.read_text())
            withdrawn = {int(version): str(why) for version, why in values["withdrawn"].items()}
            return cls(max(highest, int(values["highest"])), withdrawn)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise BuildError(
                f"cannot be read: {err!r}", source=str(path), remedy="delete it, unless a newer version was deleted"
            ) from err

    def save(self, repository: Path) -> None:
        """Write it, whole."""
        values = {"highest": self.highest, "withdrawn": {str(k): why for k, why in sorted(self.withdrawn.items())}}
        path = repository / contract.MODEL_NAME / VERSION_LOG_FILE
        write_atomically(path, json.dumps(values, indent=2) + "\n")

    def with_number(self, version: int) -> History:
        """After a number was given."""
        return replace(self, highest=max(self.highest, version))

    def rolled_back(self, to: int, there: list[int]) -> History:
        """After going back to a version: what is newer is withdrawn, itself is not."""
        newer = {version: f"rolled back to {to}" for version in there if version > to}
        kept = {version: why for version, why in self.withdrawn.items() if version != to}
        return replace(self, withdrawn={**newer, **kept})

    def before(self, live: int, there: list[int]) -> int | None:
        """The version to go back to: the newest below the live one that was not withdrawn."""
        return max((v for v in there if v < live and v not in self.withdrawn), default=None)
