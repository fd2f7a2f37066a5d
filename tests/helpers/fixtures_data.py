"""Fixtures: radiographs, real ones and drawn ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.data import REAL_DATA, TWENTY
from tests.helpers.once import made_once


@pytest.fixture(scope="session")
def twenty_radiographs() -> Path:
    """Folder of twenty real radiographs in the Kaggle layout, which every clone has; read tests/data/README.md."""
    return TWENTY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with hundreds of real radiographs and DICOM files; tests that need so many are skipped without it."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"needs more radiographs than tests/data has: none at {REAL_DATA} (set XRAY_TEST_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set of phantom radiographs in the Kaggle layout."""
    from finetune.phantom import write_phantoms

    folder = made_once(tmp_path_factory, "phantoms", lambda folder: write_phantoms(folder / "chest_xray", count=260))
    return folder / "chest_xray"
