"""DICOM: what each kind of file becomes, grey level by grey level, or why it is refused."""

from __future__ import annotations

import contextlib
import io
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from tests.helpers.dicom_files import RAMP, encoded, made
from xray_client import ImageError, ImageTooLarge, ImageUnreadable, ImageUnsupported, read_radiograph

FOR_PROCESSING = UID("1.2.840.10008.5.1.4.1.1.1.1.1")
SECONDARY = UID("1.2.840.10008.5.1.4.1.1.7")
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def table(values: np.ndarray, bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [len(values) % 65536, first, bits], values.tolist(), "US"
    item["LUTDescriptor"].VR, item["LUTData"].VR = "SS" if first < 0 else "US", "US"
    return item


def share(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)
SQUARES = (np.arange(4096) ** 2 // 4096).astype(np.uint16)
DIM = np.where(RAMP < 3900, RAMP // 9, RAMP).astype(np.uint16)
PADDED = np.where(RAMP < 64, 4095, RAMP).astype(np.uint16)

EMPTY = Dataset()
EMPTY.LUTDescriptor = None
EMPTY["LUTDescriptor"].VR = "SS"
EMPTY.LUTExplanation = "NORMAL"


def packed(values: np.ndarray) -> Dataset:
    """A table of 8 bits, two entries to a word."""
    item = table(values, 8)
    item.add_new("LUTData", "OW", values.astype(np.uint8).tobytes())
    return item


def overlaid() -> Dataset:
    """12 bits, and an overlay in the 13th."""
    dataset = made(np.where(RAMP % 7 == 0, RAMP | 0x1000, RAMP).astype(np.uint16))
    for element, vr, value in (
        (0x10, "US", 64),
        (0x11, "US", 64),
        (0x40, "CS", "G"),
        (0x100, "US", 16),
        (0x102, "US", 12),
    ):
        dataset.add_new((0x6000, element), vr, value)
    return dataset


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
    "modality by its kind": (made(Modality=None), share(RAMP, 0, 4095)),
    "empty everywhere": (
        made(RescaleSlope="", RescaleIntercept="", VOILUTSequence=[EMPTY], ModalityLUTSequence=[], VOILUTFunction="",
             PresentationLUTSequence=[], PresentationLUTShape="", NumberOfFrames="",
             PixelAspectRatio="", Modality="", WindowCenter=1024, WindowWidth=512),
        share(RAMP, 768, 1279),
    ),
    "window of a detector's 12 bits in 16": (
        made(RAMP, bits=16, WindowCenter=2048, WindowWidth=4096), share(RAMP, 0, 4095),
    ),
    "dim, and of full depth": (
        made(DIM), share(DIM, 0, 4095),
    ),
    "signed table for signed values": (
        made(SIGNED, VOILUTSequence=[table(SQUARES, 12, first=-2048)]), share(SQUARES[RAMP], 0, 4095),
    ),
    "unsigned word for a negative first value": (
        made(SIGNED, VOILUTSequence=[table(SQUARES, 12, first=65536 - 2048)]), share(SQUARES[RAMP], 0, 4095),
    ),
    "table of 8 bits, a word each": (
        made(VOILUTSequence=[table(SQUARES // 16, 8)]), share(SQUARES[RAMP] // 16, 0, 255),
    ),
    "table of 8 bits, two to a word": (
        made(VOILUTSequence=[packed(SQUARES // 16)]), share(SQUARES[RAMP] // 16, 0, 255),
    ),
    "table of 65,536 entries": (
        made(RAMP * 16, bits=16, VOILUTSequence=[table(np.arange(65536), 16)]), share(RAMP * 16.0, 0, 65535),
    ),
    "table that begins late and ends early": (
        made(VOILUTSequence=[table(np.arange(0, 4096, 4), 12, first=1024)]),
        share(np.clip((RAMP.astype(int) - 1024) * 4, 0, 4092), 0, 4095),
    ),
    "table before window": (
        made(VOILUTSequence=[table(SQUARES, 12)], WindowCenter=9, WindowWidth=3), share(SQUARES[RAMP], 0, 4095),
    ),
    "overlay in a spare bit": (overlaid(), share(RAMP, 0, 4095)),
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


def changed(item: Dataset, **elements: Any) -> Dataset:
    for name, value in elements.items():
        vr = item[name].VR
        setattr(item, name, value)
        item[name].VR = vr
    return item


def changed_to(dataset: Dataset, name: str, item: Dataset) -> Dataset:
    setattr(dataset, name, [item])
    return dataset


def without_kind(*, meta: bool = False) -> bytes:
    """A radiograph that names its SOP class in the file meta information alone, or nowhere."""
    data = encoded(made())
    for tag in (b"\x02\0\x02\0UI", b"\x08\0\x16\0UI") if meta else (b"\x08\0\x16\0UI",):
        place = data.index(tag)
        data = data[:place] + data[place + 8 + int.from_bytes(data[place + 6 : place + 8], "little") :]
    return data


def small_elements(count: int) -> bytes:
    """Private elements of no value, explicit VR."""
    return b"".join(struct.pack("<HH2sH", 0x0009, 0x1000 + number % 4096, b"LO", 0) for number in range(count))


def sequence(inside: bytes, *, times: int = 1) -> bytes:
    """Sequences of undefined length, one in the other."""
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    for _ in range(times):
        inside = struct.pack("<HH2sHI", 0x0009, 0x2000, b"SQ", 0, 0xFFFFFFFF) + item + inside
        inside += struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return inside


def with_bytes(elements: bytes) -> bytes:
    """A radiograph with these bytes among its elements."""
    data = encoded(made())
    place = data.index(b"\x10\0\x10\0PN")
    return data[:place] + elements + data[place:]


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
    file = io.BytesIO()
    Image.linear_gradient("L").resize((size, size)).save(file, "JPEG")
    return file.getvalue()


CHANGED = np.dstack([GREY, 255 - GREY, np.roll(GREY, 5)])

REFUSED: dict[str, tuple[Callable[[], bytes], type[ImageError], str]] = {
    "CT": (lambda: encoded(made(kind=CTImageStorage, Modality="CT")), ImageUnsupported, "modality CT"),
    "mammography": (lambda: encoded(made(Modality="MG")), ImageUnsupported, "modality MG"),
    "camera": (lambda: encoded(made(kind=SECONDARY, Modality="XC")), ImageUnsupported, "modality XC"),
    "film of no modality": (lambda: encoded(made(kind=SECONDARY, Modality="")), ImageUnsupported,
                            "modality not given"),
    "another modality": (lambda: encoded(made(Modality="DOE^JANE")), ImageUnsupported, "modality another"),
    "another kind": (lambda: encoded(made(kind=UID("1.2.3.4711"))), ImageUnsupported, "an unknown kind of object"),
    "no kind": (lambda: without_kind(meta=True), ImageUnreadable, "no SOPClassUID"),
    "table of contents": (lambda: encoded(made(kind=UID("1.2.840.10008.1.3.10"))), ImageUnsupported,
                          "table of contents"),
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
    "window of no width": (lambda: encoded(made(WindowCenter=9, WindowWidth=0)), ImageUnsupported, "WindowWidth of 0"),
    "window of no number": (lambda: encoded(made(WindowCenter="NaN", WindowWidth="NaN")), ImageUnsupported,
                            "WindowCenter is not finite"),
    "window without end": (lambda: encoded(made(WindowCenter=1, WindowWidth="inf")), ImageUnsupported,
                           "WindowWidth is not finite"),
    "unknown window": (lambda: encoded(made(WindowCenter=9, WindowWidth=9, VOILUTFunction="CUBIC")), ImageUnsupported,
                       "VOILUTFunction"),
    "endless slope": (lambda: encoded(made(RescaleSlope="inf", RescaleIntercept=0)), ImageUnsupported,
                      "RescaleSlope is not finite"),
    "half a rescaling": (lambda: encoded(made(RescaleSlope=2, RescaleIntercept="")), ImageUnsupported, "alone"),
    "rescaled twice": (lambda: encoded(made(RescaleSlope=2, RescaleIntercept=0,
                                            ModalityLUTSequence=[table(SQUARES * 16, 16)])),
                       ImageUnsupported, "both a modality lookup table"),
    "12 bits in 16": (lambda: encoded(made(RAMP, bits=16)), ImageUnsupported,
                      "16-bit samples that reach only 4095 of 65535, so their true depth"),
    "12 bits in 16, one marker": (lambda: encoded(made(np.where(RAMP < 9, 65535, RAMP).astype(np.uint16), bits=16)),
                                  ImageUnsupported, "of which 99 % reach only 4095"),
    "12 bits in 16, bright padding": (
        lambda: encoded(made(np.where(RAMP < 1000, 65535, RAMP).astype(np.uint16), bits=16, PixelPaddingValue=65535)),
        ImageUnsupported, "true depth is not known"),
    "12 bits in 16, inverted": (lambda: encoded(made(RAMP, bits=16, PhotometricInterpretation="MONOCHROME1")),
                                ImageUnsupported, "true depth is not known"),
    "signed, from zero on": (lambda: encoded(made((RAMP // 2).astype(np.int16))), ImageUnsupported,
                             "signed 12-bit samples from 0 to 2047"),
    "14 bits in a header of 12": (lambda: encoded(made(RAMP * 4)), ImageUnreadable, "outside of its 12 bits"),
    "narrow table": (lambda: encoded(made(VOILUTSequence=[table(SQUARES, 16)])), ImageUnsupported,
                     "lookup table has 16 bits and reaches only 4094, so its true depth"),
    "wide table": (lambda: encoded(made(VOILUTSequence=[table(SQUARES, 8)])), ImageUnsupported,
                   "value-of-interest lookup table has 8 bits, and entries up to 4094"),
    "table of 20 bits": (lambda: encoded(made(ModalityLUTSequence=[table(SQUARES, 20)])), ImageUnsupported,
                         "modality lookup table has 20 bits"),
    "short table": (lambda: encoded(made(VOILUTSequence=[changed(table(SQUARES, 12), LUTDescriptor=[5000, 0, 12])])),
                    ImageUnreadable, "5000 entries by its descriptor"),
    "table without data": (lambda: encoded(made(VOILUTSequence=[changed(table(SQUARES, 12), LUTData=None)])),
                           ImageUnreadable, "no descriptor or no data"),
    "many elements": (lambda: with_bytes(small_elements(20_001)), ImageUnsupported, "more than 20000 elements"),
    "many elements in a table": (lambda: with_bytes(sequence(small_elements(20_001))), ImageUnsupported,
                                 "more than 20000 elements"),
    "deep": (lambda: with_bytes(sequence(b"", times=17)), ImageUnsupported, "more than 16 deep"),
    "negative slope": (lambda: encoded(made(RescaleSlope=-1, RescaleIntercept=0)), ImageUnsupported, "rescaled by"),
    "no slope": (lambda: encoded(made(RescaleSlope="NaN", RescaleIntercept=0)), ImageUnsupported,
                 "RescaleSlope is not finite"),
    "no pixels": (lambda: encoded(made(PixelData=None)), ImageUnsupported, "no pixels"),
    "few pixels": (lambda: encoded(made(PixelData=b"\0" * 100)), ImageUnreadable, "cannot be decoded"),
    "huge": (lambda: encoded(made(Rows=60000, Columns=60000)), ImageTooLarge, "60000 x 60000 pixels"),
    "deflated": (lambda: encoded(made(syntax=DeflatedExplicitVRLittleEndian)), ImageUnsupported, "deflated"),
    "video": (lambda: encoded(compressed(b"\0" * 64, MPEG2MPML)), ImageUnsupported, "MPEG2"),
    "larger inside": (lambda: encoded(compressed(jpeg(512))), ImageUnreadable, "512 x 512"),
    "broken inside": (lambda: encoded(compressed(jpeg(16)[:300])), ImageUnreadable, "truncated or damaged"),
    "truncated": (lambda: encoded(made())[:3000], ImageUnreadable, "cannot be decoded"),
    "head only": (lambda: encoded(made())[:200], ImageUnreadable, "has no Rows"),
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


def test_the_file_meta_informations_sop_class_stands_in_for_a_missing_one() -> None:
    np.testing.assert_allclose(np.asarray(read_radiograph(without_kind())), share(RAMP, 0, 4095), atol=1)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("meta", [True, False])
def test_a_file_without_a_preamble_is_read(implicit: bool, meta: bool) -> None:
    dataset = made(syntax=ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian)
    file = io.BytesIO()
    if meta:
        data = encoded(dataset)[132:]
    else:
        del dataset.file_meta
        pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        data = file.getvalue()
    np.testing.assert_allclose(np.asarray(read_radiograph(data)), share(RAMP, 0, 4095), atol=1)


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk is not installed")
@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
def test_tables_are_shown_as_dcmtk_shows_them_or_refused(kind: str, tmp_path: Path) -> None:
    """Depths, first values, lengths and packings; what is refused is wider or narrower than its table says."""
    shown = 0
    for bits in (8, 10, 12, 16):
        for top in (8, 10, 12, 16):
            for first, length in ((0, 4096), (1000, 2000), (-5, 4100)):
                ramp = np.round(np.linspace(0, 2**top - 1, length)).astype(int)
                values = made(SIGNED + 2048 if first < 0 else RAMP)
                dataset = changed_to(values, kind, table(ramp, bits, first))
                path = tmp_path / "table.dcm"
                path.write_bytes(encoded(dataset))
                if top != bits:
                    with pytest.raises(ImageUnsupported, match=r"lookup table has \d+ bits"):
                        read_radiograph(path)
                    continue
                window = ["+Wl", "1"] if kind == "VOILUTSequence" else []
                subprocess.run(["dcm2pnm", "+op", *window, path, tmp_path / "theirs.pgm"], check=True, timeout=60)
                with Image.open(tmp_path / "theirs.pgm") as theirs:
                    apart = np.abs(np.asarray(read_radiograph(path)).astype(int) - np.asarray(theirs))
                assert apart.max() <= 2, (bits, first, length)
                shown += 1
    assert shown == 12


def test_a_jpeg_inside_is_read() -> None:
    with Image.open(io.BytesIO(jpeg(16))) as shown:
        assert np.array_equal(np.asarray(read_radiograph(encoded(compressed(jpeg(16))))), np.asarray(shown))


def test_a_damaged_jpeg_inside_is_refused() -> None:
    """The codec for DICOM shows one without a word, each in its own way."""
    whole = jpeg(256)
    scan = whole.index(b"\xff\xda") + 12
    for damaged in (whole[: scan + 40] + b"\xff\xd9", whole[:scan] + bytes(30) + whole[scan + 30 :]):
        with pytest.raises(ImageUnreadable, match="truncated or damaged"):
            read_radiograph(encoded(compressed(damaged, Rows=256, Columns=256)))


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
