"""Patients of radiographs: from the name of a file, or from a DICOM header."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from xray_client.console import quiet

# person123_bacteria_4.jpeg, IM-0115-0001.jpeg, NORMAL2-IM-1427-0001-0002.jpeg, BACTERIA-1008087-0001.jpeg
_PATIENT_PATTERNS = (
    re.compile(r"^(person\d+)_(?:bacteria|virus)_\d+(?:_\d+)?$"),
    re.compile(r"^((?:NORMAL\d*-)?IM-\d+)-\d+(?:-\d+)?$"),
    re.compile(r"^((?:BACTERIA|VIRUS|NORMAL)-\d+)-\d+$"),
)
_PATIENT_ID, _ISSUER = 0x00100020, 0x00100021


def patient_of(path: Path) -> str | None:
    """Return the patient encoded in a file name of the Kaggle set; None if the name follows no known pattern."""
    for pattern in _PATIENT_PATTERNS:
        if match := pattern.match(path.stem):
            return match.group(1)
    return None


def dicom_patient(path: Path) -> str | None:
    """Return the patient of a DICOM file, hashed: `dicom-` and 16 hexadecimal digits; None if it names none.

    The hash is SHA-256 over PatientID and, where it is given, IssuerOfPatientID, which makes the number unique (DICOM
    PS3.3 C.2.2). It is the same in every set, so that a patient is found again; whoever can guess the number can
    compute it, so a table that holds it is pseudonymous and not anonymous.
    """
    if path.suffix and path.suffix.lower() not in (".dcm", ".dicom") and not path.suffix[1:].isdigit():
        return None
    try:
        from pydicom.filereader import read_partial
    except ImportError:
        return None

    def past_patient(tag: Any, _vr: str | None, _length: int) -> bool:
        return bool(tag > _ISSUER)

    # pydicom raises nearly anything on damaged bytes, and its messages may quote elements of the patient; a file that
    # cannot be read is named when it is decoded.
    try:
        with quiet(), path.open("rb") as file:
            dataset = read_partial(file, stop_when=past_patient, specific_tags=[_PATIENT_ID, _ISSUER])
            number, issuer = (
                str(dataset.get(tag).value or "") if tag in dataset else "" for tag in (_PATIENT_ID, _ISSUER)
            )
    except Exception:
        return None
    if not number.strip():
        return None
    return "dicom-" + hashlib.sha256(f"{issuer.strip()}\0{number.strip()}".encode()).hexdigest()[:16]
