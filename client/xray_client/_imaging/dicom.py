"""DICOM decoder: one file -> one grey 8-bit image, or an error with the reason.

It takes computed radiography, digital radiography for presentation, and secondary captures of them, with one frame.
Nothing that a file holds is in a message but numbers of a few technical elements and words that the standard defines:
pydicom and its codecs quote names and numbers of patients in theirs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from xray_client._exceptions import ImageError, ImageTooLarge, ImageUnreadable, ImageUnsupported

from .dicom_elements import EXPORT, integer_of, required, table_of, value_of, word_of
from .dicom_grey import to_display
from .dicom_limits import check_header
from .jpeg import check_intact
from .quiet import quietly

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

_T = TypeVar("_T")

_EXTRA = "install it: pip install 'medclip-triton[dicom]'"

_SECONDARY_CAPTURES = ("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.7.2", "1.2.840.10008.5.1.4.1.1.7.3")
_COMPUTED, _DIGITAL = _RADIOGRAPHS = ("1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1")
_FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"
_DIRECTORY = "1.2.840.10008.1.3.10"
_MODALITIES = ("CR", "DX", "RG")
# Words that may be printed, of PS3.3 C.7.3.1.1.1.
_OTHER_MODALITIES = (
    "AU", "BI", "CT", "DG", "DOC", "ECG", "ES", "GM", "IO", "KO", "MG", "MR", "NM", "OP", "OPT", "OT", "PR", "PT", "PX",
    "REG", "RF", "RTDOSE", "RTIMAGE", "RTPLAN", "RTSTRUCT", "SEG", "SM", "SR", "US", "XA", "XC",
)  # fmt: skip
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422")
_OTHER_COLOUR = ("PALETTE COLOR", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "CMYK", "HSV", "ARGB")
_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
_TRANSFER_SYNTAX = (2, 0x10)
# Markers SOF0 to SOF15 but those of tables and of arithmetic coding (DHT, JPG, DAC), and SOF55 of JPEG-LS.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}


def is_dicom(data: bytes) -> bool:
    """Return True if these bytes have DICOM's mark behind the preamble, or begin with an element as DICOM writes it."""
    return data[128:132] == b"DICM" or _begins_with_an_element(data)


def _begins_with_an_element(data: bytes) -> bool:
    """Return True for bytes that begin with an element of DICOM, as files without a preamble do."""
    if len(data) < 12 or data[:2] not in (b"\x02\x00", b"\x08\x00") or data[3] != 0:
        return False
    if data[4:6].isalpha() and data[4:6].isupper():
        return True
    return int.from_bytes(data[4:8], "little") <= min(64, len(data) - 8)  # of the short elements that come first


def decode_dicom(data: bytes, max_pixels: int) -> Image.Image:
    """Decode one DICOM radiograph for display: bones white.

    Args:
        data: The whole file.
        max_pixels: Largest number of pixels; more are refused before they are decoded.

    Returns:
        Grey image of mode "L"; of mode "RGB" if the file stores colour, which the caller checks.

    Raises:
        ImageUnsupported: pydicom or a codec is missing; not a radiograph; several frames; a pixel format, photometric
            interpretation or transform that is not understood; nothing says which value is white.
        ImageUnreadable: Truncated or damaged.
        ImageTooLarge: More than `max_pixels`.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as err:
        raise ImageUnsupported("a DICOM file, and pydicom is not installed", remedy=_EXTRA) from err
    with quietly():
        dataset = _guarded(lambda: _parse(data), "damaged, or not written as the standard says")
        _guarded(lambda: _check(dataset, max_pixels), "damaged, or not written as the standard says")
        syntax = dataset.file_meta.TransferSyntaxUID
        stored = _guarded(lambda: _stored_values(dataset), f"its pixels ({syntax.name}) cannot be decoded")
        if stored.shape[:2] != (dataset.Rows, dataset.Columns):
            raise ImageUnreadable(
                f"its pixels are {stored.shape}, its header says {dataset.Rows} x {dataset.Columns}",
                remedy="export it again",
            )
        if stored.ndim == 3:
            return Image.fromarray(np.ascontiguousarray(stored))
        grey = _guarded(lambda: to_display(dataset, stored), "its grey levels are not described as the standard says")
        return Image.fromarray(grey)


def _guarded(work: Callable[[], _T], what: str) -> _T:
    """Do `work`; whatever else than an `ImageError` it raises becomes one, without a word of it and without a chain."""
    try:
        return work()
    except ImageError:
        raise
    except MemoryError:
        error: ImageError = ImageTooLarge("DICOM: more than this machine's memory", remedy=EXPORT)
    except BaseException as err:
        # pydicom and its codecs raise nearly anything on damaged bytes. A codec written in Rust panics, and that is no
        # `Exception`.
        if not isinstance(err, Exception) and type(err).__name__ != "PanicException":
            raise
        error = ImageUnreadable(f"DICOM: {what} ({type(err).__name__})", remedy=EXPORT)
    raise error  # here, so that the exception above is not its context


def _parse(data: bytes) -> Dataset:
    """Parse the data set, its transfer syntax included, which is found out where no file meta information says it."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    start = 132 if data[128:132] == b"DICM" else 0
    end = check_header(data, start, explicit=True, little_endian=True, group=2)
    meta = read_dataset(io.BytesIO(data[start:end]), False, True)
    named = str(meta[_TRANSFER_SYNTAX].value or "") if _TRANSFER_SYNTAX in meta else ""
    if named:
        _check_transfer_syntax(UID(named))
        explicit = named != _IMPLICIT
    else:
        explicit = data[end + 4 : end + 6].isalpha() and data[end + 4 : end + 6].isupper()
    check_header(data, end, explicit=explicit, little_endian=named != _BIG_ENDIAN)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    if not named:
        if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
            raise ImageUnsupported("DICOM: compressed, and names no transfer syntax", remedy=EXPORT)
        if not hasattr(dataset, "file_meta"):
            dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = UID(_EXPLICIT if explicit else _IMPLICIT)
    return dataset


def _check_transfer_syntax(syntax: UID) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if syntax == _DEFLATED:  # inflated whole before anything can be checked
        raise ImageUnsupported("DICOM: a deflated data set", remedy=EXPORT)
    if not syntax.is_transfer_syntax:
        raise ImageUnsupported("DICOM: an unknown transfer syntax", remedy=EXPORT)
    if not syntax.is_compressed:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as err:
        raise ImageUnsupported(f"DICOM: pixels compressed as {syntax.name}", remedy=EXPORT) from err
    if not decoder.is_available:
        raise ImageUnsupported(f"DICOM: no codec for {syntax.name}", remedy=_EXTRA)


def _check(dataset: Dataset, max_pixels: int) -> None:
    _check_kind(dataset)
    _check_pixels(dataset, max_pixels)
    _check_presentation(dataset)


def _check_kind(dataset: Dataset) -> None:
    from pydicom._uid_dict import UID_dictionary
    from pydicom.uid import UID

    kind = str(value_of(dataset, "SOPClassUID") or value_of(dataset.file_meta, "MediaStorageSOPClassUID") or "")
    if not kind:  # then nothing tells a radiograph from the detector's raw image
        raise ImageUnreadable("DICOM: damaged or made anonymous, it has no SOPClassUID", remedy=EXPORT)
    if kind == _DIRECTORY:
        raise ImageUnsupported("DICOM: a table of contents (DICOMDIR)", remedy="leave it out: it names other files")
    intent = word_of(dataset, "PresentationIntentType", ("FOR PROCESSING", "FOR PRESENTATION"))
    if kind == _FOR_PROCESSING or intent == "FOR PROCESSING":
        raise ImageUnsupported("DICOM: the detector's raw image", remedy="send the image for presentation")
    modality = word_of(dataset, "Modality", (*_MODALITIES, *_OTHER_MODALITIES))
    if modality is None:
        modality = {_COMPUTED: "CR", _DIGITAL: "DX"}.get(kind)
    # A film that was scanned is a secondary capture of modality OT.
    secondary = kind in _SECONDARY_CAPTURES and modality in (*_MODALITIES, "OT")
    if not secondary and not (kind in _RADIOGRAPHS and modality in _MODALITIES):
        name = UID(kind).name if kind in UID_dictionary else "an unknown kind of object"
        raise ImageUnsupported(
            f"DICOM: {name}, modality {modality or 'not given'}: not a radiograph",
            remedy="send computed or digital radiography (CR, DX)",
        )


def _check_pixels(dataset: Dataset, max_pixels: int) -> None:
    rows, columns = required(dataset, "Rows"), required(dataset, "Columns")
    if rows * columns > max_pixels:
        raise ImageTooLarge(
            f"{columns} x {rows} pixels, more than {max_pixels // 10**6} megapixels", remedy="export it smaller"
        )
    if rows * columns == 0 or "PixelData" not in dataset:
        raise ImageUnsupported("DICOM: has no pixels, or floating-point ones", remedy=EXPORT)
    frames = integer_of(dataset, "NumberOfFrames") or 1
    if frames != 1:
        raise ImageUnsupported(f"DICOM: holds {frames} frames", remedy="save the radiograph alone")
    photometric = word_of(dataset, "PhotometricInterpretation", (*_GREY, *_COLOUR, *_OTHER_COLOUR))
    samples = required(dataset, "SamplesPerPixel")
    allocated, stored = required(dataset, "BitsAllocated"), required(dataset, "BitsStored")
    if photometric in _GREY:
        understood = samples == 1 and allocated in (8, 16) and 8 <= stored <= allocated
    else:
        understood = samples == 3 and photometric in _COLOUR and allocated == stored == 8
    if not understood or required(dataset, "HighBit") != stored - 1:
        raise ImageUnsupported(
            f"DICOM: {photometric or 'no'} photometric interpretation with {samples} x {stored} of {allocated} bits is "
            "not understood",
            remedy=EXPORT,
        )
    dataset.PhotometricInterpretation = photometric  # without a blank that somebody added


def _check_presentation(dataset: Dataset) -> None:
    photometric = dataset.PhotometricInterpretation
    shape = word_of(dataset, "PresentationLUTShape", ("IDENTITY", "INVERSE"))
    expected = "INVERSE" if photometric == "MONOCHROME1" else "IDENTITY"
    if table_of(dataset, "PresentationLUTSequence") is not None or shape not in (None, expected):
        raise ImageUnsupported(f"DICOM: {photometric} together with another presentation table", remedy=EXPORT)
    if value_of(dataset, "PixelAspectRatio") is not None and len({float(n) for n in dataset.PixelAspectRatio}) > 1:
        raise ImageUnsupported("DICOM: its pixels are not square", remedy=EXPORT)


def _stored_values(dataset: Dataset) -> npt.NDArray[Any]:
    """Decode the pixels: integers (rows, columns), or uint8 (rows, columns, 3) of a file that stores colour.

    Bits above `BitsStored` are read as well, so that values beyond them are noticed; pydicom would cut them off, and a
    14-bit radiograph of which the header says 12 would wrap around. Only those of an overlay are dropped.
    """
    found = _codestream(dataset)
    if found is not None and (found["rows"], found["columns"]) != (dataset.Rows, dataset.Columns):
        raise ImageUnreadable(
            f"its pixels are {found['columns']} x {found['rows']}, its header says {dataset.Columns} x {dataset.Rows}",
            remedy="export it again",
        )
    if found is not None and dataset.file_meta.TransferSyntaxUID == _JPEG_BASELINE:
        from pydicom.encaps import get_frame

        check_intact(get_frame(dataset.PixelData, 0, number_of_frames=1))
    stored, allocated = int(dataset.BitsStored), int(dataset.BitsAllocated)
    whole = allocated if found is None else min(allocated, max(stored, int(found["precision"])))
    if whole == stored or (found is None and int(dataset.PixelRepresentation or 0) == 1):
        return np.asarray(dataset.pixel_array)
    dataset.BitsStored, dataset.HighBit = whole, whole - 1
    try:
        pixels = np.asarray(dataset.pixel_array)
    finally:
        dataset.BitsStored, dataset.HighBit = stored, stored - 1
    above = int(np.bitwise_or.reduce(pixels, axis=None)) >> stored if pixels.min() >= 0 else 0
    if above and above & ~(_overlay_bits(dataset) >> stored) == 0:
        pixels = pixels & pixels.dtype.type(2**stored - 1)
    return pixels


def _codestream(dataset: Dataset) -> dict[str, Any] | None:
    """Read rows, columns and precision inside the compressed pixels; None where the compression has no header."""
    from pydicom.encaps import get_frame
    from pydicom.uid import JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in JPEG2000TransferSyntaxes or syntax.name.startswith("High-Throughput JPEG 2000"):
        from openjpeg.utils import get_parameters as parameters_2000

        return dict(parameters_2000(get_frame(dataset.PixelData, 0, number_of_frames=1)))
    if syntax in JPEGTransferSyntaxes or syntax in JPEGLSTransferSyntaxes:
        return _jpeg_parameters(get_frame(dataset.PixelData, 0, number_of_frames=1))
    return None


def _jpeg_parameters(stream: bytes) -> dict[str, int]:
    """Read the frame header of a JPEG, JPEG Lossless or JPEG-LS stream (ITU-T T.81 B.2.2, T.87 C.2.2).

    libjpeg's own function decodes a part of the picture for it, half as long as all of it takes.
    """
    place = 2  # after the start of the image
    while place + 9 < len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker in _FRAME_HEADERS:
            precision, rows, columns = struct.unpack_from(">BHH", stream, place + 4)
            return {"precision": precision, "rows": rows, "columns": columns}
        # A byte of filling may stand before a marker.
        place += 1 if marker == 0xFF else 2 + int.from_bytes(stream[place + 2 : place + 4], "big")
    raise ImageUnreadable("its pixels have no frame header", remedy="export it again")


def _overlay_bits(dataset: Dataset) -> int:
    """Bits of a pixel that hold overlays instead of grey levels, as files before 2004 have them (PS3.3 C.9.2)."""
    bits = 0
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x102) in dataset and (group, 0x3000) not in dataset:
            position = dataset[group, 0x102].value
            bits |= 1 << position if isinstance(position, int) and 0 < position < 16 else 0
    return bits
