"""What training and export raise on purpose; each names the thing and the remedy, as the client's errors do."""

from __future__ import annotations

from xray_client import XrayError


class DataError(XrayError):
    """The folder of radiographs cannot be trained on as it is."""


class CheckpointError(XrayError):
    """A checkpoint is missing, damaged, or does not match its configuration."""
