"""Elements of a DICOM data set: an empty one is absent, and an error names the element and never what it holds.

Anonymisers and converters leave elements of no length, sequences of no items and items of no elements. To PS3.5 they
are elements without a value; to a reader of pixels they say nothing.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from typing import TYPE_CHECKING, Any

from xray_client._exceptions import ImageUnreadable, ImageUnsupported

if TYPE_CHECKING:
    from pydicom import Dataset

EXPORT = "export it as PNG, 8 or 16 bit, from the viewer"


def value_of(dataset: Dataset, name: str) -> Any:
    """Return the value of an element, of several the first; None where it is absent or empty.

    Raises:
        ImageUnreadable: The value is not one of its type.
    """
    unreadable = None
    try:
        value = dataset.get(name)
    except Exception as err:  # pydicom raises nearly anything, with the value in its words
        unreadable = type(err).__name__
    if unreadable:
        raise ImageUnreadable(f"DICOM: {name} is damaged ({unreadable})", remedy=EXPORT)
    if isinstance(value, MutableSequence):
        value = next(iter(value), None)
    return None if value is None or value == "" else value


def integer_of(dataset: Dataset, name: str) -> int | None:
    """Return an element that is a whole number; None where it is absent or empty.

    Raises:
        ImageUnreadable: It is no whole number.
    """
    number = number_of(dataset, name)
    if number is not None and number != int(number):
        raise ImageUnreadable(f"DICOM: {name} is not a whole number", remedy=EXPORT)
    return None if number is None else int(number)


def required(dataset: Dataset, name: str) -> int:
    """Return an element that is a whole number and must be there.

    Raises:
        ImageUnreadable: It is absent, empty or no whole number.
    """
    number = integer_of(dataset, name)
    if number is None:
        raise ImageUnreadable(f"DICOM: damaged, it has no {name}", remedy=EXPORT)
    return number


def number_of(dataset: Dataset, name: str) -> float | None:
    """Return an element that is a number; None where it is absent or empty.

    Raises:
        ImageUnreadable: It is no number.
        ImageUnsupported: It is not finite.
    """
    value = value_of(dataset, name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise ImageUnreadable(f"DICOM: {name} is not a number", remedy=EXPORT)
    if not math.isfinite(number):
        raise ImageUnsupported(f"DICOM: {name} is not finite", remedy=EXPORT)
    return number


def word_of(dataset: Dataset, name: str, known: tuple[str, ...]) -> str | None:
    """Return an element that is one of the `known` words, "another" if it is none of them; None where it is absent.

    A defined term may be printed; whatever else stands there may be anything, the patient's name included.
    """
    value = value_of(dataset, name)
    if value is None:
        return None
    word = str(value).strip().upper()
    return word if word in known else "another" if word else None


def table_of(dataset: Dataset, name: str) -> Dataset | None:
    """Return the first item of a sequence of lookup tables; None where the sequence or the table is absent or empty."""
    item = value_of(dataset, name)
    if item is None or (value_of(item, "LUTDescriptor") is None and value_of(item, "LUTData") is None):
        return None
    return item  # type: ignore[no-any-return]
