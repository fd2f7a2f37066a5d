"""The versions of a model folder, their manifests, and the log of the numbers that were given and withdrawn.

Versions are folders; which one is served stands in the configurations, where Triton reads it. The log `versions.json`
keeps what neither can tell: the highest number ever given, so that none is given twice, and which versions were
withdrawn by a rollback.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from xray_build.artefacts import MANIFEST_FILE, VERSION_LOG_FILE
from xray_build.errors import BuildError
from xray_client import contract
from xray_client.files import write_atomically
from xray_client.parsing import parse_json

MANIFEST_VERSION = 1


def versions(repository: Path) -> list[int]:
    """Published versions, ascending."""
    model = repository / contract.MODEL_NAME
    if not model.is_dir():
        return []
    # Triton takes no folder with a leading zero for a version.
    return sorted(int(c.name) for c in model.iterdir() if re.fullmatch(r"[1-9][0-9]*", c.name) and c.is_dir())


def version_folder(repository: Path, version: int) -> Path:
    """Folder of a published version.

    Raises:
        BuildError: There is no such version.
    """
    if version not in (published := versions(repository)):
        has = f"it has {', '.join(map(str, published))}" if published else "it has none"
        raise BuildError(f"there is no version {version}", source=str(repository / contract.MODEL_NAME), remedy=has)
    return repository / contract.MODEL_NAME / str(version)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a version's manifest.

    Raises:
        BuildError: It is missing, damaged, or of another release.
    """
    path = folder / MANIFEST_FILE
    try:
        manifest = parse_json(path.read_text())
        if not isinstance(manifest["files"], dict) or not isinstance(manifest["preprocessing"], dict):
            raise ValueError("files and preprocessing are not there")
    except (OSError, ValueError, KeyError, TypeError) as err:
        reason = err.strerror if isinstance(err, OSError) else repr(err)
        raise BuildError(f"the manifest cannot be read: {reason}", source=str(path), remedy="publish again") from err
    if manifest.get("manifest_version") != MANIFEST_VERSION:
        raise BuildError(
            f"manifest version {manifest.get('manifest_version')}, this release reads {MANIFEST_VERSION}",
            source=str(path),
            remedy="use the release that published it",
        )
    return dict(manifest)


@dataclass(frozen=True)
class VersionLog:
    """The content of `versions.json`.

    Attributes:
        highest: The highest number that was ever given; 0 = none.
        withdrawn: Versions that a rollback passes over, each with the reason.
    """

    highest: int = 0
    withdrawn: dict[int, str] = field(default_factory=dict)

    @classmethod
    def load(cls, repository: Path) -> VersionLog:
        """Read the log; without one, derive it from the folders.

        Raises:
            BuildError: It is damaged.
        """
        path = repository / contract.MODEL_NAME / VERSION_LOG_FILE
        highest = max(versions(repository), default=0)
        if not path.is_file():
            return cls(highest)
        try:
            values = parse_json(path.read_text())
            withdrawn = {int(version): str(reason) for version, reason in values["withdrawn"].items()}
            return cls(max(highest, int(values["highest"])), withdrawn)
        except (ValueError, KeyError, TypeError, AttributeError) as err:
            raise BuildError(
                f"cannot be read: {err!r}", source=str(path), remedy="delete it, unless a newer version was deleted"
            ) from err

    def save(self, repository: Path) -> None:
        """Write the log in one step."""
        withdrawn = {str(version): reason for version, reason in sorted(self.withdrawn.items())}
        path = repository / contract.MODEL_NAME / VERSION_LOG_FILE
        write_atomically(path, json.dumps({"highest": self.highest, "withdrawn": withdrawn}, indent=2) + "\n")

    def with_number(self, version: int) -> VersionLog:
        """The log after a number was given."""
        return replace(self, highest=max(self.highest, version))

    def rolled_back(self, to: int, published: list[int]) -> VersionLog:
        """The log after a rollback: every newer version is withdrawn, the one that is served again is not."""
        newer = {version: f"rolled back to {to}" for version in published if version > to}
        kept = {version: reason for version, reason in self.withdrawn.items() if version != to}
        return replace(self, withdrawn={**newer, **kept})

    def previous(self, live: int, published: list[int]) -> int | None:
        """The version that a rollback serves: the newest below the live one that was not withdrawn."""
        return max((v for v in published if v < live and v not in self.withdrawn), default=None)
