"""Silence for the libraries that decode: their warnings and log lines may quote what a file holds, patient included.

Nothing else of the process changes: the filters act on the thread that decodes, while it decodes. Whatever filters the
process has set, an "error" among them, do not change what is read.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_LOGGERS = (
    "pydicom", "PIL.Image", "PIL.PngImagePlugin", "PIL.TiffImagePlugin", "PIL.JpegImagePlugin", "PIL.BmpImagePlugin",
    "tifffile",
)  # fmt: skip
_thread = threading.local()


def _is_quiet() -> bool:
    return getattr(_thread, "depth", 0) > 0


class _WhileQuiet:
    """Stands in a warning filter for the pattern of a module's name; matches every one, in a thread that decodes."""

    def match(self, _text: str) -> bool:
        return _is_quiet()


_FILTER: Any = ("ignore", None, Warning, _WhileQuiet(), 0)


def _keeps(_record: logging.LogRecord) -> bool:
    return not _is_quiet()


@contextmanager
def quietly() -> Iterator[None]:
    """Drop the warnings and log lines of decoding libraries in this thread, for the time of the block."""
    # Put in place each time: another part of the process may have reset the filters, or put its own before.
    if not warnings.filters or warnings.filters[0] is not _FILTER:
        with suppress(ValueError):
            warnings.filters.remove(_FILTER)  # type: ignore[attr-defined]
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_keeps)  # once: a filter that is there is not added again
    _thread.depth = getattr(_thread, "depth", 0) + 1
    try:
        yield
    finally:
        _thread.depth -= 1
