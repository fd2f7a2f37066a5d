"""Classify chest radiographs with a MedCLIP model that NVIDIA Triton serves.

>>> from xray_client import XrayClient
>>> with XrayClient("127.0.0.1:8001") as client:          # doctest: +SKIP
...     print(client.classify("chest.png").finding)
Normal

Research use only. Not a medical device.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from xray_client._imaging.overlay import render_overlay, write_overlay
from xray_client._imaging.preprocessing import Preprocessing
from xray_client._imaging.reader import ImageSource, load_radiograph, read_radiograph

from ._client import XrayClient
from ._config import TLS, Endpoints, Priority
from ._exceptions import (
    AuthenticationFailed,
    DeadlineExceeded,
    ImageError,
    ImageTooLarge,
    ImageUnavailable,
    ImageUnreadable,
    ImageUnsupported,
    ModelNotFound,
    NotFinite,
    NotNormalised,
    OutputMismatch,
    OutputRefused,
    PreprocessingMismatch,
    ProtocolMismatch,
    QueueFull,
    RequestRejected,
    ServerError,
    ServerNotReady,
    ServerUnreachable,
    ShuttingDown,
    TLSFailed,
    XrayError,
)
from ._models import Estimate, Failure, ModelCard, ModelInfo, Prediction, Tensor, Timing
from .contract import FINDINGS, LABELS, RESEARCH_USE

__all__ = [
    "FINDINGS",
    "LABELS",
    "RESEARCH_USE",
    "TLS",
    "AsyncXrayClient",
    "AuthenticationFailed",
    "DeadlineExceeded",
    "Endpoints",
    "Estimate",
    "Failure",
    "ImageError",
    "ImageSource",
    "ImageTooLarge",
    "ImageUnavailable",
    "ImageUnreadable",
    "ImageUnsupported",
    "ModelCard",
    "ModelInfo",
    "ModelNotFound",
    "NotFinite",
    "NotNormalised",
    "OutputMismatch",
    "OutputRefused",
    "Prediction",
    "Preprocessing",
    "PreprocessingMismatch",
    "Priority",
    "ProtocolMismatch",
    "QueueFull",
    "RequestRejected",
    "ServerError",
    "ServerNotReady",
    "ServerUnreachable",
    "ShuttingDown",
    "TLSFailed",
    "Tensor",
    "Timing",
    "XrayClient",
    "XrayError",
    "__version__",
    "load_radiograph",
    "read_radiograph",
    "render_overlay",
    "write_overlay",
]

if TYPE_CHECKING:
    from ._async_client import AsyncXrayClient

__version__: str

# An application that wants the log adds a handler; see docs/client.md.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "AsyncXrayClient":  # asyncio costs as much as the rest of the import
        from ._async_client import AsyncXrayClient

        return AsyncXrayClient
    if name == "__version__":  # read on demand: it costs as much as the rest of the import
        from importlib.metadata import version

        return version("medclip-triton")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
