"""Image files in a folder: the suffixes that this project reads, and DICOM that has none."""

from __future__ import annotations

from pathlib import Path

from ._imaging.dicom import is_dicom

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
# Overlays are written beside the radiographs and are none.
OVERLAY_SUFFIX = ".overlay.png"


def is_image_file(path: Path) -> bool:
    """Tell by the name, or by the first bytes as DICOM often has no suffix, if this is an image to read.

    Hidden files and the overlays of this package are not. Only a regular file is opened: a pipe would block.
    """
    if path.name.startswith("."):
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return not path.name.endswith(OVERLAY_SUFFIX)
    # Archives name DICOM files IM0001 or 1.2.840.113, whose last part looks like a suffix.
    if path.suffix and not path.suffix[1:].isdigit():
        return False
    try:
        return path.is_file() and _starts_like_dicom(path)
    except OSError:  # no permission: whoever names it gets the reader's error
        return False


def _starts_like_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return is_dicom(file.read(132))
