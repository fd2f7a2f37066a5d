"""DICOM: what each kind of file becomes, grey level by grey level, or why it is refused."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    RLELossless,
)

from tests.helpers.dicom_files import RAMP, encoded, made
from xray_client import ImageError, ImageTooLarge, ImageUnreadable, ImageUnsupported, read_radiograph

FOR_PROCESSING = UID("1.2.840.10008.5.1.4.1.1.1.1.1")
SECONDARY = UID("1.2.840.10008.5.1.4.1.1.7")
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def table(values: np.ndarray, bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [len(values), first, bits], values.tolist(), "US"
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    return item


def share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)
SQUARES = (np.arange(4096) ** 2 // 4096).astype(np.uint16)
PADDED = np.where(RAMP < 64, 4095, RAMP).astype(np.uint16)

SHOWN: dict[str, tuple[Dataset, np.ndarray]] = {
    "8 bits": (made(GREY, bits=8), GREY),
    "12 bits": (made(), share(RAMP, 0, 4095)),
    "16 bits": (made(RAMP * 16, bits=16), share(RAMP * 16.0, 0, 65535)),
    "signed": (made(SIGNED), share(RAMP, 0, 4095)),
    "MONOCHROME1": (made(PhotometricInterpretation="MONOCHROME1"), 255 - share(RAMP, 0, 4095)),
    "MONOCHROME1, presentation inverse": (
        made(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE"), 255 - share(RAMP, 0, 4095),
    ),
    "rescaled": (made(RescaleSlope=2, RescaleIntercept=-100), share(RAMP, 0, 4095)),
    "window": (made(WindowCenter=1024, WindowWidth=512), share(RAMP, 768, 1279)),
    "first of two windows": (made(WindowCenter=[1024, 1], WindowWidth=[512, 9]), share(RAMP, 768, 1279)),
    "window after rescaling": (
        made(RescaleSlope=2, RescaleIntercept=-100, WindowCenter=1948, WindowWidth=1024), share(RAMP, 768, 1279.5),
    ),
    "exact window": (
        made(WindowCenter=1024, WindowWidth=512, VOILUTFunction="LINEAR_EXACT"), share(RAMP, 768, 1280),
    ),
    "empty window": (made(WindowCenter="", WindowWidth=""), share(RAMP, 0, 4095)),
    "value-of-interest table": (made(VOILUTSequence=[table(SQUARES, 12)]), share(SQUARES[RAMP], 0, 4095)),
    "modality table": (made(ModalityLUTSequence=[table(SQUARES * 16, 16)]), share(SQUARES[RAMP], 0, 4095.9)),
    "padding": (made(PADDED, PixelPaddingValue=4095), np.where((RAMP < 64) | (RAMP == 4095), 0, share(RAMP, 0, 4095))),
    "film": (made(GREY, bits=8, kind=SECONDARY, Modality="OT"), GREY),
    "grey as colour": (
        made(np.dstack([GREY] * 3), bits=8, kind=SECONDARY, PhotometricInterpretation="RGB"), GREY,
    ),
    "one frame, said": (made(NumberOfFrames=1), share(RAMP, 0, 4095)),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN)
def test_a_radiograph_is_shown_as_the_standard_says(case: str, tmp_path: Path) -> None:
    dataset, expected = SHOWN[case]
    path = tmp_path / "called.png"
    path.write_bytes(encoded(dataset))
    image = read_radiograph(path)
    assert image.mode == "L"
    np.testing.assert_allclose(np.asarray(image), expected, atol=1)  # a window's ends differ by half a grey level


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_are_pydicoms(function: str) -> None:
    dataset = made(WindowCenter=1500.5, WindowWidth=700.25, VOILUTFunction=function)
    expected = np.rint(np.clip(apply_voi_lut(RAMP, dataset) / 4095, 0, 1) * 255)
    np.testing.assert_array_equal(np.asarray(read_radiograph(encoded(dataset))), expected)


def multi_frame() -> Dataset:
    dataset = made(NumberOfFrames=2)
    dataset.PixelData = RAMP.tobytes() * 2
    return dataset


def compressed(jpeg: bytes, syntax: UID = JPEGBaseline8Bit, **changed: Any) -> Dataset:
    dataset = made(GREY, bits=8, syntax=syntax, **changed)
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def jpeg(size: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (size, size)).save(file, "JPEG")
    return file.getvalue()


CHANGED = np.dstack([GREY, 255 - GREY, np.roll(GREY, 5)])

REFUSED: dict[str, tuple[Callable[[], bytes], type[ImageError], str]] = {
    "CT": (lambda: encoded(made(kind=CTImageStorage, Modality="CT")), ImageUnsupported, "modality CT"),
    "mammography": (lambda: encoded(made(Modality="MG")), ImageUnsupported, "modality MG"),
    "camera": (lambda: encoded(made(kind=SECONDARY, Modality="XC")), ImageUnsupported, "modality XC"),
    "no modality": (lambda: encoded(made(Modality=None)), ImageUnsupported, "modality not given"),
    "raw": (lambda: encoded(made(kind=FOR_PROCESSING, Modality="DX")), ImageUnsupported, "raw image"),
    "raw by intent": (lambda: encoded(made(PresentationIntentType="FOR PROCESSING")), ImageUnsupported, "raw image"),
    "two frames": (lambda: encoded(multi_frame()), ImageUnsupported, "holds 2 frames"),
    "palette": (lambda: encoded(made(GREY, bits=8, PhotometricInterpretation="PALETTE COLOR")), ImageUnsupported,
                "PALETTE COLOR"),
    "colour": (lambda: encoded(made(CHANGED, bits=8, kind=SECONDARY, PhotometricInterpretation="RGB")),
               ImageUnsupported, "a colour image"),
    "high bit": (lambda: encoded(made(HighBit=15)), ImageUnsupported, "12 of 16 bits"),
    "oblong pixels": (lambda: encoded(made(PixelAspectRatio=[1, 2])), ImageUnsupported, "not square"),
    "contradiction": (lambda: encoded(made(PresentationLUTShape="INVERSE")), ImageUnsupported, "presentation table"),
    "half a window": (lambda: encoded(made(WindowCenter=100)), ImageUnsupported, "half a window"),
    "window of no width": (lambda: encoded(made(WindowCenter=100, WindowWidth=0)), ImageUnreadable, "grey levels"),
    "unknown window": (lambda: encoded(made(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC")), ImageUnreadable,
                       "grey levels"),
    "negative slope": (lambda: encoded(made(RescaleSlope=-1, RescaleIntercept=0)), ImageUnsupported, "rescaled by"),
    "no slope": (lambda: encoded(made(RescaleSlope="NaN", RescaleIntercept=0)), ImageUnsupported, "rescaled by"),
    "no pixels": (lambda: encoded(made(PixelData=None)), ImageUnsupported, "no pixels"),
    "few pixels": (lambda: encoded(made(PixelData=b"\0" * 100)), ImageUnreadable, "cannot be decoded"),
    "huge": (lambda: encoded(made(Rows=60000, Columns=60000)), ImageTooLarge, "60000 x 60000 pixels"),
    "deflated": (lambda: encoded(made(syntax=DeflatedExplicitVRLittleEndian)), ImageUnsupported, "deflated"),
    "video": (lambda: encoded(compressed(b"\0" * 64, MPEG2MPML)), ImageUnsupported, "MPEG2"),
    "larger inside": (lambda: encoded(compressed(jpeg(512))), ImageUnreadable, "512 x 512"),
    "broken inside": (lambda: encoded(compressed(jpeg(16)[:300])), ImageUnreadable, "cannot be decoded"),
    "truncated": (lambda: encoded(made())[:3000], ImageUnreadable, "cannot be decoded"),
    "head only": (lambda: encoded(made())[:200], ImageUnreadable, "damaged"),
    "mark only": (lambda: b"\0" * 128 + b"DICM" + b"\0" * 100, ImageUnreadable, "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_understood_is_refused_by_name(case: str) -> None:
    data, error, says = REFUSED[case]
    with pytest.raises(error, match=says) as caught:
        read_radiograph(data())
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_a_jpeg_inside_is_read() -> None:
    assert read_radiograph(encoded(compressed(jpeg(16)))).getextrema() == (0, 0)


def test_without_pydicom_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(made())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageUnsupported, match=r"medclip-triton\[dicom\]"):
        read_radiograph(data)


def test_without_a_codec_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydicom.pixels import get_decoder

    monkeypatch.setattr(get_decoder(JPEGBaseline8Bit), "_available", {})
    with pytest.raises(ImageUnsupported, match=r"no codec for JPEG Baseline.*medclip-triton\[dicom\]"):
        read_radiograph(encoded(compressed(jpeg(16))))


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_end_in_the_error_tree(seed: int) -> None:
    random = np.random.default_rng(seed)
    whole = [encoded(made(RAMP[:16, :16], WindowCenter=9, WindowWidth=9)), encoded(compressed(jpeg(16)))]
    for _ in range(60):
        data = bytearray(whole[random.integers(2)])
        for place in random.integers(132, len(data), random.integers(1, 12)):
            data[place] = random.integers(256)
        with contextlib.suppress(ImageError):
            assert read_radiograph(bytes(data)).mode == "L"


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
