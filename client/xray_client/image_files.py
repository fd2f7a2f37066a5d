"""Image files in a folder: the suffixes that this project reads, and DICOM that has none."""

from __future__ import annotations

import stat
from pathlib import Path

from ._imaging.dicom import is_dicom

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
# Overlays are written beside the radiographs and are none.
OVERLAY_SUFFIX = ".overlay.png"
# The table of contents of a medium, DICOM PS3.10 section 8.6: a DICOM file without an image.
_DICOMDIR = "DICOMDIR"


def is_image_file(path: Path) -> bool:
    """Tell by the name, or by the first bytes as DICOM often has no suffix, if this is an image to read.

    Hidden files and the overlays of this package are not. Only a regular file is opened: a pipe would block.
    """
    return why_left_out(path) is None


def why_left_out(path: Path) -> str | None:
    """Return the reason why a file of a folder is not read, as words for a count; None for an image to read.

    Example:
        >>> why_left_out(Path("chest_xray/README.txt"))
        'not an image: .txt'
    """
    if path.name.startswith("."):
        return "hidden"
    if path.name.upper() == _DICOMDIR:
        return "a table of contents of DICOM files"
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return "an overlay of this project" if path.name.endswith(OVERLAY_SUFFIX) else None
    # Archives name DICOM files IM0001 or 1.2.840.113, whose last part looks like a suffix.
    if path.suffix and not path.suffix[1:].isdigit():
        return f"not an image: {path.suffix.lower()}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file"
        return None if _starts_like_dicom(path) else "not an image: no suffix, and not DICOM"
    except OSError as err:  # whoever names it gets the reader's error
        return f"cannot be opened: {err.strerror or err}"


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))
