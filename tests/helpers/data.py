"""Places of the radiographs that the tests use."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Twenty radiographs that come with the tests: train/NORMAL and train/PNEUMONIA, ten each.
TWENTY = ROOT / "tests" / "data" / "chest_xray"
# Hundreds of radiographs and DICOM files, not part of the repository: beside it, or where XRAY_TEST_DATA says.
REAL_DATA = Path(os.environ.get("XRAY_TEST_DATA", ROOT.parent / "shared" / "data"))
