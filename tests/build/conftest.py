"""One build of the reference model on real radiographs, by the command line, shared by the tests of its steps."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from finetune.models.served_model import REFERENCE, load_checkpoint
from tests.helpers.commands import Built, xray_build
from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_client import Preprocessing


@pytest.fixture(scope="session")
def preprocessing() -> Preprocessing:
    """The reference model's."""
    return load_checkpoint(REFERENCE)[0].classifier.config.preprocessing


@pytest.fixture(scope="session")
def radiographs(real_data: Path, preprocessing: Preprocessing) -> CalibrationSet:
    """Some real radiographs."""
    return read_calibration(real_data / "chest_xray_224" / "train", preprocessing, count=100)


@pytest.fixture(scope="session")
def table(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 200 labelled radiographs of the part val, other ones than most of `radiographs`."""
    path = tmp_path_factory.mktemp("table") / "validation.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for folder, label in (("NORMAL", "Normal"), ("PNEUMONIA", "Pneumonia")):
            files = sorted((real_data / "chest_xray_224" / "train" / folder).iterdir())
            writer.writerows([str(files[i]), label, "val"] for i in np.linspace(0, len(files) - 1, 100).astype(int))
    return path


@pytest.fixture(scope="session")
def built(real_data: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The reference model through every command."""
    folder = tmp_path_factory.mktemp("built")
    commands = {
        "onnx": [
            "onnx",
            "reference",
            "--out",
            folder,
            "--images",
            real_data / "chest_xray_224" / "train",
            "--count",
            100,
        ],
        "fp16": ["fp16", folder],
        "plan": ["plan", folder],
        "rtx": ["plan", folder, "--compiler", "tensorrt-rtx", "--max-batch", 16],
        "int8": ["int8", folder, "--validation", table],
    }
    return Built(folder, {name: xray_build(*words) for name, words in commands.items()})
