"""DICOM decoder: one file -> one grey 8-bit image, or an error with the reason.

It takes computed radiography, digital radiography for presentation, and secondary captures of them, with one frame. The
steps are those of DICOM PS3.3 C.11 and PS3.4 N.2: stored values, modality transform, value-of-interest transform,
presentation.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import ImageError, ImageTooLarge, ImageUnreadable, ImageUnsupported

if TYPE_CHECKING:
    from pydicom import Dataset

_EXTRA = "install it: pip install 'medclip-triton[dicom]'"
_EXPORT = "export it as PNG, 8 or 16 bit, from the viewer"

_SECONDARY_CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3")
_RADIOGRAPHS = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1")
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_MODALITIES = ("CR", "DX", "RG")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422")


def is_dicom(data: bytes) -> bool:
    """Return True if these bytes have DICOM's mark after the preamble."""
    return data[128:132] == b"DICM"


def decode_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """Decode one DICOM radiograph for display: bones white.

    Args:
        data: The whole file.
        max_pixels: Largest number of pixels; more are refused before they are decoded.

    Returns:
        Grey image of mode "L"; of mode "RGB" if the file stores colour, which the caller checks.

    Raises:
        ImageUnsupported: pydicom or a codec is missing; not a radiograph; several frames; a pixel format, photometric
            interpretation or transform that is not understood.
        ImageUnreadable: Truncated or damaged.
        ImageTooLarge: More than `max_pixels`.
    """
    try:
        import pydicom
    except ImportError as err:
        raise ImageUnsupported("a DICOM file, and pydicom is not installed", remedy=_EXTRA) from err
    with _pydicom_errors("damaged, or not written as the standard says"):
        _check_transfer_syntax(data)
        dataset = pydicom.dcmread(io.BytesIO(data))
        _check_kind(dataset)
        _check_pixels(dataset, max_pixels)
    syntax = dataset.file_meta.TransferSyntaxUID
    with _pydicom_errors(f"its pixels ({syntax.name}) cannot be decoded"):
        _check_codec(dataset)
        stored = dataset.pixel_array
    if stored.shape[:2] != (dataset.Rows, dataset.Columns):
        raise ImageUnreadable(
            f"its pixels are {stored.shape}, its header says {dataset.Rows} x {dataset.Columns}",
            remedy="export it again",
        )
    if stored.ndim == 3:
        return Image.fromarray(np.ascontiguousarray(stored))
    with _pydicom_errors("its grey levels are not described as the standard says"):
        return Image.fromarray(_to_display(dataset, stored))


@contextmanager
def _pydicom_errors(what: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except MemoryError as err:
        raise ImageTooLarge("DICOM: more than this machine's memory", remedy=_EXPORT) from err
    # pydicom and its codecs raise nearly anything on damaged bytes. The message is dropped: it may quote elements of
    # the patient.
    except BaseException as err:
        # A codec written in Rust panics on damaged bytes, and that is no `Exception`.
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        raise ImageUnreadable(f"DICOM: {what} ({type(err).__name__})", remedy=_EXPORT) from err


def _check_transfer_syntax(data: bytes) -> None:
    from pydicom.filereader import read_dataset
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    def past_meta(tag: Any, _vr: str | None, _length: int) -> bool:
        return bool(tag.group != 2)

    meta = read_dataset(io.BytesIO(data[132:]), False, True, stop_when=past_meta)
    syntax = UID(meta.TransferSyntaxUID)
    if syntax == _DEFLATED:  # inflated whole before anything can be checked
        raise ImageUnsupported("DICOM: a deflated data set", remedy=_EXPORT)
    if not syntax.is_transfer_syntax:
        raise ImageUnsupported("DICOM: an unknown transfer syntax", remedy=_EXPORT)
    if not syntax.is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as err:
        raise ImageUnsupported(f"DICOM: pixels compressed as {syntax.name}", remedy=_EXPORT) from err
    if not decoder.is_available:
        raise ImageUnsupported(f"DICOM: no codec for {syntax.name}", remedy=_EXTRA)


def _check_kind(dataset: Dataset) -> None:
    kind, modality = str(dataset.SOPClassUID), str(dataset.get("Modality", ""))
    if kind == _FOR_PROCESSING or dataset.get("PresentationIntentType") == "FOR PROCESSING":
        raise ImageUnsupported("DICOM: the detector's raw image", remedy="send the image for presentation")
    # A film that was scanned is a secondary capture of modality OT.
    secondary = kind in _SECONDARY_CAPTURES and modality in (*_MODALITIES, "OT")
    if not secondary and not (kind in _RADIOGRAPHS and modality in _MODALITIES):
        raise ImageUnsupported(
            f"DICOM: {dataset.SOPClassUID.name}, modality {modality or 'not given'}: not a radiograph",
            remedy="send computed or digital radiography (CR, DX)",
        )


def _check_pixels(dataset: Dataset, max_pixels: int) -> None:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if rows * columns > max_pixels:
        raise ImageTooLarge(
            f"{columns} x {rows} pixels, more than {max_pixels // 10**6} megapixels", remedy="export it smaller"
        )
    if rows * columns == 0 or "PixelData" not in dataset:
        raise ImageUnsupported("DICOM: has no pixels, or floating-point ones", remedy=_EXPORT)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageUnsupported(f"DICOM: holds {frames} frames", remedy="save the radiograph alone")
    photometric, samples = str(dataset.PhotometricInterpretation), int(dataset.SamplesPerPixel)
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if photometric in ("MONOCHROME1", "MONOCHROME2"):
        understood = samples == 1 and allocated in (8, 16) and 8 <= stored <= allocated
    else:
        understood = samples == 3 and photometric in _COLOUR and allocated == stored == 8
    if not understood or int(dataset.HighBit) != stored - 1:
        raise ImageUnsupported(
            f"DICOM: {photometric} with {samples} x {stored} of {allocated} bits is not understood", remedy=_EXPORT
        )
    shape = dataset.get("PresentationLUTShape")
    expected = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if "PresentationLUTSequence" in dataset or (shape and shape != expected):
        raise ImageUnsupported(f"DICOM: {photometric} together with another presentation table", remedy=_EXPORT)
    if len({float(side) for side in dataset.get("PixelAspectRatio") or (1,)}) > 1:
        raise ImageUnsupported("DICOM: its pixels are not square", remedy=_EXPORT)


def _check_codec(dataset: Dataset) -> None:
    """Compare the size inside the compressed pixels with the header's, which the limit was checked on."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    syntax = dataset.file_meta.TransferSyntaxUID
    found: dict[str, Any]
    if syntax in JPEG2000TransferSyntaxes:
        from openjpeg.utils import get_parameters as parameters_2000

        found = dict(parameters_2000(get_frame(dataset.PixelData, 0, number_of_frames=1)))
    elif syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        from libjpeg.utils import get_parameters

        found = dict(get_parameters(get_frame(dataset.PixelData, 0, number_of_frames=1)))
    else:
        return
    if (found["rows"], found["columns"]) != (dataset.Rows, dataset.Columns):
        raise ImageUnreadable(
            f"its pixels are {found['columns']} x {found['rows']}, its header says {dataset.Columns} x {dataset.Rows}",
            remedy="export it again",
        )


def _to_display(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Stored values (h, w) -> uint8 (h, w), through a table of all values that `BitsStored` can hold."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    count, signed = 2 ** int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    lowest = -count // 2 if signed else 0
    if int(stored.min()) < lowest or int(stored.max()) >= lowest + count:
        raise ImageUnreadable(f"DICOM: grey levels outside of its {dataset.BitsStored} bits", remedy="export it again")
    values = np.arange(lowest, lowest + count, dtype=np.int32)
    _drop_empty_window(dataset)
    black, white = _range(dataset, lowest, lowest + count - 1)
    shown = np.asarray(apply_voi_lut(apply_modality_lut(values, dataset), dataset), dtype=np.float64)
    table = np.rint(np.clip((shown - black) / (white - black), 0, 1) * 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # the lowest value is white: bones would be black
        table = 255 - table
    table[_padding(dataset, values)] = 0
    return np.asarray(table[stored.astype(np.int32) - lowest])


def _drop_empty_window(dataset: Dataset) -> None:
    for name in ("WindowCenter", "WindowWidth"):
        if name in dataset and dataset[name].is_empty:
            delattr(dataset, name)
    if ("WindowCenter" in dataset) != ("WindowWidth" in dataset):
        raise ImageUnsupported("DICOM: half a window", remedy=_EXPORT)
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        if name in dataset and not dataset[name].value:
            delattr(dataset, name)


def _range(dataset: Dataset, lowest: int, highest: int) -> tuple[float, float]:
    """Return black and white after the value-of-interest transform, as pydicom scales it."""
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        if name in dataset:
            bits = int(dataset[name].value[0].LUTDescriptor[2])
            if not 8 <= bits <= 16:
                raise ImageUnsupported(f"DICOM: a lookup table of {bits} bits", remedy=_EXPORT)
            return 0.0, 2.0**bits - 1
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return float(lowest), float(highest)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise ImageUnsupported(f"DICOM: rescaled by {slope} and {intercept}", remedy=_EXPORT)
    return lowest * float(slope) + float(intercept), highest * float(slope) + float(intercept)


def _padding(dataset: Dataset, values: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Mask the values of padding (PS3.3 C.7.5.1.1.2): background, whatever the photometric interpretation."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return np.zeros(values.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    first, last = sorted((int(value), int(value if limit is None else limit)))
    return (values >= first) & (values <= last)
