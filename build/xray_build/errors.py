"""The error of builds and publications."""

from __future__ import annotations

from xray_client import XrayError


class BuildError(XrayError):
    """A step of a build or a publication failed; the live version is unchanged."""
