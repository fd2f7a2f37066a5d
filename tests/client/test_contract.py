"""What a user of the package can rely on from outside."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib.metadata import version

import pytest

import xray_client
from xray_client import ImageUnreadable, ServerUnreachable, XrayError, _exceptions
from xray_client.contract import OUTPUTS, UNCERTAIN

PUBLIC = """
    AsyncXrayClient AuthenticationFailed NotFinite NotNormalised OutputMismatch Priority QueueFull ShuttingDown TLS
    TLSFailed Endpoints Estimate ModelCard
    DeadlineExceeded FINDINGS Failure ImageError ImageSource ImageTooLarge ImageUnreadable ImageUnsupported LABELS
    ImageUnavailable OutputRefused
    ModelInfo ModelNotFound Prediction Preprocessing PreprocessingMismatch ProtocolMismatch RESEARCH_USE
    RequestRejected ServerError ServerNotReady ServerUnreachable Tensor Timing XrayClient XrayError __version__
    load_radiograph read_radiograph render_overlay write_overlay
"""


def test_exactly_these_names_are_public() -> None:
    assert sorted(xray_client.__all__) == sorted(PUBLIC.split())
    assert all(hasattr(xray_client, name) for name in xray_client.__all__)


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert xray_client.__version__ == version("medclip-triton")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        xray_client.nothing  # noqa: B018


def test_the_findings_are_the_labels_and_uncertain() -> None:
    assert xray_client.FINDINGS == ("Normal", "Pneumonia", "Uncertain")
    assert xray_client.FINDINGS[UNCERTAIN] == "Uncertain"
    assert OUTPUTS == ("probability", "decision", "heatmap", "novelty")


def test_the_import_loads_nothing_heavy() -> None:
    heavy = "torch", "transformers", "tritonclient", "grpc", "rich", "click", "onnxruntime"
    code = f"import sys, xray_client; assert not sys.modules.keys() & set({heavy!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_an_error_says_what_happened_to_what_and_what_to_do() -> None:
    error = ImageUnreadable("the file is empty", remedy="export it again", source="a.png")
    assert str(error) == "a.png: the file is empty (export it again)"


def test_every_error_of_the_package_has_one_base() -> None:
    errors = [value for value in vars(xray_client).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert {error.__name__ for error in errors} == {name for name in vars(_exceptions) if name[0].isupper()} - {"Any"}
    assert all(issubclass(error, XrayError) for error in errors)


def test_an_error_survives_the_way_between_processes() -> None:
    error = ServerUnreachable("gone", remedy="start it")
    error.source = "127.0.0.1:8001"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ServerUnreachable
    assert str(again) == str(error) == "127.0.0.1:8001: gone (start it)"
