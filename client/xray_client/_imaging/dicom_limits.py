"""Limits on a DICOM header, checked on its bytes before a parser makes objects of them.

An element of eight bytes becomes some 500 bytes of objects, so a file of 200 MB becomes more memory than a machine has.
The walk looks at tags and lengths alone, makes nothing, and ends at the pixels.
"""

from __future__ import annotations

import struct

from xray_client._exceptions import ImageUnsupported

from .dicom_elements import EXPORT

# A digital radiograph has 100 to 2,000.
MAX_ELEMENTS = 20_000
MAX_DEPTH = 16
_LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_VRS = _LONG_VRS | frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS",
     b"ST", b"TM", b"UI", b"UL", b"US")
)  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
_PIXEL_DATA, _ITEM, _SEQUENCE_END = 0x7FE00010, 0xFFFEE000, 0xFFFEE0DD
# Sequences whose items are parsed; without value representations nothing else tells a sequence from bytes.
_TABLES = frozenset((0x00283000, 0x00283010))


def check_header(data: bytes, start: int, *, explicit: bool, little_endian: bool, group: int | None = None) -> int:
    """Walk over the elements of a header, and refuse too many of them, or too deep ones.

    Args:
        data: The whole file.
        start: Where the first element begins.
        explicit: Whether the elements name their value representation.
        little_endian: Byte order.
        group: Group after which the walk ends; None = at the pixels, or at the end of the file.

    Returns:
        Where the walk ended.

    Raises:
        ImageUnsupported: More than 20,000 elements, or sequences more than 16 deep.
    """
    header = struct.Struct("<HHI" if little_endian else ">HHI")
    short, long = (struct.Struct(("<" if little_endian else ">") + code) for code in "HI")
    position, depth, count, fragments = start, 0, 0, False
    while position + 8 <= len(data):
        found, element, length = header.unpack_from(data, position)
        if group is not None and found != group:
            break
        tag, vr, body = found << 16 | element, data[position + 4 : position + 6], position + 8
        if explicit and found != 0xFFFE and vr in _VRS:  # private ones of unknown kind hold implicit ones
            if vr in _LONG_VRS:
                if position + 12 > len(data):
                    break
                length, body = long.unpack_from(data, position + 8)[0], position + 12
            else:
                length = short.unpack_from(data, position + 6)[0]
        if tag == _PIXEL_DATA and depth == 0:
            break
        position, count = body, count + 1
        if tag == _SEQUENCE_END:
            depth, fragments = max(0, depth - 1), False
        elif length == _UNDEFINED:
            depth, fragments = depth + (tag != _ITEM), tag == _PIXEL_DATA
        elif fragments or not (tag == _ITEM or tag in _TABLES or (explicit and vr == b"SQ")):
            position += length
        if count > MAX_ELEMENTS:
            raise ImageUnsupported(f"DICOM: more than {MAX_ELEMENTS} elements", remedy=EXPORT)
        if depth > MAX_DEPTH:
            raise ImageUnsupported(f"DICOM: sequences more than {MAX_DEPTH} deep", remedy=EXPORT)
    return position
