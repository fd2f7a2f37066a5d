"""Grey levels of DICOM: stored values -> modality transform -> value-of-interest transform -> presentation.

The order is that of PS3.4 N.2, the formulas are those of PS3.3 C.11.1, C.11.2.1.2 (linear), C.11.2.1.3.1 (sigmoid) and
C.11.2.1.3.2 (linear exact). A lookup table for values of interest goes before a window; of several tables or windows
the first is taken: the standard leaves the choice to the reader, and the first is what viewers show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xray_client._exceptions import ImageUnreadable, ImageUnsupported

from .depth import check_depth
from .dicom_elements import EXPORT, integer_of, number_of, required, table_of, word_of
from .dicom_tables import LookupTable, read_table

if TYPE_CHECKING:
    from pydicom import Dataset

_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
_SHARE_AT_EACH_END = 0.01
_NO_WINDOW = "DICOM: without a window, "
_REMEDY = "export it with its window, or as PNG, from the viewer"


def to_display(dataset: Dataset, stored: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Show stored values, integers (h, w), as grey levels, uint8 (h, w), through a table of all possible values.

    Raises:
        ImageUnreadable: Values that the header's depth cannot hold; elements that are damaged or contradict each other.
        ImageUnsupported: A transform that is not understood, or no word on which value is white.
    """
    bits, signed = required(dataset, "BitsStored"), integer_of(dataset, "PixelRepresentation") == 1
    lowest = -(2 ** (bits - 1)) if signed else 0
    values = np.arange(lowest, lowest + 2**bits)
    if int(stored.min()) < lowest or int(stored.max()) >= lowest + 2**bits:
        raise ImageUnreadable(f"DICOM: grey levels outside of its {bits} bits", remedy="export it again")
    transformed, black, white = _modality(dataset, values, signed=signed)
    padding = _padding(dataset, values)
    shown = _of_interest(dataset, transformed)
    if shown is None:
        if "ModalityLUTSequence" not in dataset or table_of(dataset, "ModalityLUTSequence") is None:
            _check_range(stored, bits, padding, values)
        shown = np.clip((transformed - black) / (white - black), 0, 1)
    table = np.rint(shown * 255).astype(np.uint8)
    if dataset.PhotometricInterpretation == "MONOCHROME1":  # the lowest value is white: bones would be black
        table = 255 - table
    table[padding] = 0
    if signed:  # looked up by the bits of the value
        native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        whole = np.zeros(2 ** (8 * native.dtype.itemsize), dtype=np.uint8)
        whole[values] = table
        table, stored = whole, native.view(f"u{native.dtype.itemsize}")
    return np.asarray(table[stored])


def _modality(dataset: Dataset, values: npt.NDArray[Any], *, signed: bool) -> tuple[npt.NDArray[Any], float, float]:
    """Transform all values; returns them with what is black and white where no window says."""
    slope, intercept = number_of(dataset, "RescaleSlope"), number_of(dataset, "RescaleIntercept")
    if (item := table_of(dataset, "ModalityLUTSequence")) is not None:
        if (slope, intercept) not in ((None, None), (1, 0), (1, None), (None, 0)):
            raise ImageUnsupported("DICOM: both a modality lookup table and a rescale slope", remedy=EXPORT)
        table = read_table(item, "modality", signed=signed, little_endian=_is_little_endian(dataset))
        return table.apply(values).astype(np.float64), 0.0, table.white
    if (slope is None) != (intercept is None):
        raise ImageUnsupported("DICOM: RescaleSlope or RescaleIntercept alone", remedy=EXPORT)
    slope, intercept = 1.0 if slope is None else slope, intercept or 0.0
    if slope <= 0:
        raise ImageUnsupported(f"DICOM: rescaled by a RescaleSlope of {slope:g}", remedy=EXPORT)
    transformed = values * slope + intercept
    return transformed, float(transformed[0]), float(transformed[-1])


def _of_interest(dataset: Dataset, values: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Apply the first table or else the first window: float (n,), 0 = black, 1 = white; None where there is none."""
    if (item := table_of(dataset, "VOILUTSequence")) is not None:
        below_zero = bool(values[0] < 0)
        table: LookupTable = read_table(
            item, "value-of-interest", signed=below_zero, little_endian=_is_little_endian(dataset)
        )
        return table.apply(values) / table.white
    centre, width = number_of(dataset, "WindowCenter"), number_of(dataset, "WindowWidth")
    if centre is None and width is None:
        return None
    if centre is None or width is None:
        raise ImageUnsupported("DICOM: half a window, WindowCenter or WindowWidth alone", remedy=EXPORT)
    function = word_of(dataset, "VOILUTFunction", _FUNCTIONS) or "LINEAR"
    if function not in _FUNCTIONS:
        raise ImageUnsupported("DICOM: a VOILUTFunction that is not known", remedy=EXPORT)
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ImageUnsupported(f"DICOM: a window with a WindowWidth of {width:g}", remedy=EXPORT)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-4 * (values - centre) / width)))
    if function == "LINEAR":
        if width == 1:
            return np.where(values <= centre - 0.5, 0.0, 1.0)
        centre, width = centre - 0.5, width - 1
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _check_range(stored: npt.NDArray[Any], bits: int, padding: npt.NDArray[np.bool_], values: npt.NDArray[Any]) -> None:
    """Refuse samples that leave a part of their depth empty, where no window and no table says which value is white."""
    if bits <= 8:
        return
    lowest = int(values[0])
    seen = stored if not padding.any() else stored[~padding[stored.astype(np.int64) - lowest]]
    if lowest == 0:
        check_depth(seen, bits, kind=_NO_WINDOW, remedy=_REMEDY)
        return
    # Of a detector's values from zero on, in a type with a sign, half the range would be black.
    quarter = 2 ** (bits - 2)
    ends = (np.count_nonzero(seen < lowest + quarter), np.count_nonzero(seen >= quarter))
    if min(ends) < _SHARE_AT_EACH_END * seen.size:
        raise ImageUnsupported(
            f"{_NO_WINDOW}signed {bits}-bit samples from {seen.min()} to {seen.max()}, so their depth is not known",
            remedy=_REMEDY,
        )


def _padding(dataset: Dataset, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Mask the values of padding (PS3.3 C.7.5.1.1.2): background, whatever the photometric interpretation."""
    value, limit = integer_of(dataset, "PixelPaddingValue"), integer_of(dataset, "PixelPaddingRangeLimit")
    if value is None:
        return np.zeros(values.shape, dtype=bool)
    first, last = sorted((value, value if limit is None else limit))
    return (values >= first) & (values <= last)


def _is_little_endian(dataset: Dataset) -> bool:
    return bool(dataset.file_meta.TransferSyntaxUID.is_little_endian)
