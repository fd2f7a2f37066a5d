"""Expected errors of a build."""

from __future__ import annotations

from xray_client import XrayError


class BuildError(XrayError):
    """An artefact could not be made, or differs from the stage before it; what is live is left alone."""
