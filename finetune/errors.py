"""Errors of training and export; like the client's, each names its source and a remedy."""

from __future__ import annotations

from xray_client import XrayError


class SettingsError(XrayError, ValueError):
    """A setting is unknown, has the wrong type, or is out of range."""


class DataError(XrayError):
    """The folder of radiographs cannot be trained on as it is."""


class CheckpointError(XrayError):
    """A checkpoint is missing, damaged, or does not match its configuration."""
