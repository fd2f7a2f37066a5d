"""Lookup tables of DICOM, by PS3.3 C.11.1.1.1 (modality) and C.11.2.1.1 (values of interest).

pydicom 3.0 is not used for them. It takes a table of 8 bits that fills words of 16 for one of 16 bits, which comes out
black, and a first mapped value of the wrong sign for what it is, so that every sample falls beyond the table's end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xray_client._exceptions import ImageUnreadable, ImageUnsupported

from .dicom_elements import EXPORT, value_of

if TYPE_CHECKING:
    from pydicom import Dataset

_ENTRIES_AT_MOST = 65536


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table of grey levels.

    Attributes:
        entries: uint16 (n,), output of each input from `first` on.
        first: Input that the first entry belongs to; inputs below take that entry, those beyond the end the last.
        bits: Depth of the output, 8 to 16: 0 is black, 2**bits - 1 is white.
    """

    entries: npt.NDArray[np.uint16]
    first: int
    bits: int

    @property
    def white(self) -> float:
        """Output that is shown white."""
        return 2.0**self.bits - 1

    def apply(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Map values, numbers of any shape -> uint16 of the same shape."""
        position = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)
        return np.asarray(self.entries[position])


def read_table(item: Dataset, kind: str, *, signed: bool, little_endian: bool) -> LookupTable:
    """Read a table from the item of its sequence.

    Args:
        item: Item of a Modality LUT Sequence or VOI LUT Sequence, not empty.
        kind: Name of the table in errors, "modality" or "value-of-interest".
        signed: Whether the inputs reach below zero, which decides what the first mapped value means: writers give it
            the wrong sign.
        little_endian: Byte order of the file.

    Raises:
        ImageUnreadable: It lacks its descriptor or its data, or they do not agree.
        ImageUnsupported: Other than 8 to 16 bits, or entries that do not fit those bits: then nothing says which value
            is white.
    """
    name = f"DICOM: its {kind} lookup table"
    if value_of(item, "LUTDescriptor") is None or value_of(item, "LUTData") is None:
        raise ImageUnreadable(f"{name} has no descriptor or no data", remedy=EXPORT)
    descriptor = [int(number) for number in item.LUTDescriptor]
    if len(descriptor) != 3:
        raise ImageUnreadable(f"{name} has a descriptor of {len(descriptor)} values", remedy=EXPORT)
    count, first, bits = descriptor[0] % _ENTRIES_AT_MOST or _ENTRIES_AT_MOST, descriptor[1], descriptor[2]
    if not 8 <= bits <= 16:
        raise ImageUnsupported(f"{name} has {bits} bits", remedy=EXPORT)
    entries = _entries(item, count, bits, name, little_endian=little_endian)
    first %= 65536
    if signed and first >= 32768:
        first -= 65536
    highest = int(entries.max())
    if highest >= 2**bits:
        raise ImageUnsupported(f"{name} has {bits} bits, and entries up to {highest}", remedy=EXPORT)
    if highest < 2 ** (bits - 1):  # written for fewer bits than it says, so its true depth is not known
        raise ImageUnsupported(
            f"{name} has {bits} bits and reaches only {highest}, so its true depth is not known", remedy=EXPORT
        )
    return LookupTable(entries, first, bits)


def _entries(item: Dataset, count: int, bits: int, name: str, *, little_endian: bool) -> npt.NDArray[np.uint16]:
    """Unpack the entries, a word each, or of 8 bits two to a word."""
    data: Any = item.LUTData
    if not isinstance(data, bytes):
        words = np.atleast_1d(np.asarray([int(number) % 65536 for number in np.atleast_1d(data)], dtype="<u2"))
        data, little_endian = words.tobytes(), True
    if len(data) >= 2 * count:
        unpacked = np.frombuffer(data, "<u2" if little_endian else ">u2", count)
    elif bits == 8 and len(data) in (count, count + 1):
        packed = np.frombuffer(data, np.uint8)
        if not little_endian:  # the first of two lies in the lower byte of its word
            packed = packed[: len(packed) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)
        unpacked = packed[:count]
    else:
        raise ImageUnreadable(f"{name} has {count} entries by its descriptor and {len(data)} bytes", remedy=EXPORT)
    return unpacked.astype(np.uint16)
