"""Nothing that a file says of the patient comes out: not in messages, chains of exceptions, logs, warnings or print."""

from __future__ import annotations

import io
import traceback
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pydicom.dataset import Dataset

from tests.client.imaging.test_dicom import RAMP
from tests.helpers.dicom_files import encoded, made
from xray_client import ImageError, read_radiograph

MARKERS = ("MARKERNAME", "4711474747", "19470711", "1.2.3.987654321")
WORDS = " ".join(MARKERS)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8))


def dicom() -> bytes:
    """A radiograph of a patient, in a nested item as well, and with numbers that pydicom warns about."""
    dataset = made(RAMP[:8, :8], WindowCenter=2048, WindowWidth=4096, RescaleSlope=1, RescaleIntercept=0)
    inner = Dataset()
    for item in (inner, dataset):
        item.PatientName, item.PatientID, item.PatientBirthDate = f"{MARKERS[0]}^X", MARKERS[1], MARKERS[2]
        item.StudyInstanceUID = item.FrameOfReferenceUID = MARKERS[3]
    dataset.OtherPatientIDsSequence = [inner]
    return encoded(dataset)


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E] = found[0x013B] = WORDS  # description, artist
    found[274] = 3
    return found


def png() -> bytes:
    texts, file = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("Patient", WORDS)
    texts.add_text("Name", WORDS, zip=True)
    texts.add_itxt("Description", WORDS, zip=True)
    PICTURE.save(file, "PNG", pnginfo=texts, exif=exif())
    return file.getvalue()


def jpeg() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "JPEG", comment=WORDS, exif=exif())
    return file.getvalue()


def tiff() -> bytes:
    tags, file = TiffImagePlugin.ImageFileDirectory_v2(), io.BytesIO()
    for tag in (270, 271, 305, 315, 316):
        tags[tag] = WORDS
    PICTURE.save(file, "TIFF", tiffinfo=tags, compression="tiff_lzw")
    return file.getvalue()


@pytest.mark.parametrize("first", range(4))
@pytest.mark.parametrize("make", [dicom, png, jpeg, tiff])
def test_whatever_byte_is_damaged(
    make: Callable[[], bytes], first: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every fourth byte each, in two ways, and cut off there."""
    whole, said, outcomes = make(), [], 0
    caplog.set_level("DEBUG")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for place in range(first, min(len(whole), 1600), 4):
            for damaged in (
                whole[:place] + b"\xff" + whole[place + 1 :],
                whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :],
                whole[:place],
            ):
                try:
                    read_radiograph(damaged)
                except ImageError as err:
                    outcomes += 1
                    said += traceback.format_exception(err)
                    inner: BaseException | None = err
                    while inner is not None:
                        said += [str(inner), repr(inner.args)]
                        inner = inner.__cause__ or inner.__context__
    said += [str(each.message) for each in warned] + [caplog.text, *capfd.readouterr()]
    assert outcomes > 100
    assert not [line for line in said if any(marker in line for marker in MARKERS)]
