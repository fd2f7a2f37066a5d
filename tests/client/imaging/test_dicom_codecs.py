"""DICOM files as scanners and archives write them, in each transfer syntax, and a codec that panics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    RLELossless,
)

from tests.helpers.dicom_files import RAMP, encoded, made
from xray_client import ImageUnreadable, read_radiograph

REAL = (
    "RG1_J2KI", "RG1_JLSN", "RG2_J2KI", "RG2_J2KR", "RG2_JLSN", "RG2_JPLL", "RG2_RLE", "test1.dcm", "test2.dcm",
)  # fmt: skip


def test_a_codec_that_panics_is_an_image_error() -> None:
    """Found by `python -m tests.client.imaging.fuzz`: the panic of a codec in Rust is a `BaseException`."""
    dataset = made(np.vstack([RAMP, RAMP]))
    dataset.compress(RLELossless)
    dataset.Rows = 64  # half of what is there
    with pytest.raises(ImageUnreadable, match=r"RLE Lossless.*cannot be decoded"):
        read_radiograph(encoded(dataset))


def test_real_files_of_seven_transfer_syntaxes(real_data: Path) -> None:
    read = {name: np.asarray(read_radiograph(real_data / "dicom" / name), dtype=float) for name in REAL}
    reference = read["RG2_RLE"]
    for name in ("RG2_J2KR", "RG2_JPLL"):  # lossless
        np.testing.assert_array_equal(read[name], reference)
    for name in ("RG2_JLSN", "RG2_J2KI"):  # lossy: single samples stray, the radiograph does not
        assert np.abs(read[name] - reference).mean() < 2
    for name in ("RG1_J2KI", "RG1_JLSN", "test1.dcm", "test2.dcm"):  # bones white: the spine outshines the lungs
        height, width = read[name].shape
        rows = slice(height * 3 // 10, height // 2)
        spine = read[name][rows, width * 9 // 20 : width * 11 // 20].mean()
        lungs = read[name][rows, width * 2 // 10 : width * 3 // 10].mean()
        assert spine > lungs + 10, name
    with pytest.raises(ImageUnreadable, match="JPEG Extended"):
        read_radiograph(real_data / "dicom" / "RG2_JPLY")
