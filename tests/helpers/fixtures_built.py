"""Fixtures: one build of the reference model on real radiographs, by the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.once import made_once

if TYPE_CHECKING:
    from tests.helpers.commands import Built
    from xray_build.engines.calibration_set import CalibrationSet
    from xray_client import Preprocessing

# The other four of the twenty radiographs are seen by no step of the build.
CALIBRATION_COUNT = 16
LABELS = {"NORMAL": "Normal", "PNEUMONIA": "Pneumonia"}


def write_table(path: Path, files: Iterable[Path]) -> Path:
    """Write a table of radiographs of the split val, labelled by the folders that they lie in."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([str(radiograph), LABELS[radiograph.parent.name], "val"] for radiograph in files)
    return path


@pytest.fixture(scope="session")
def preprocessing() -> Preprocessing:
    """Preprocessing of the reference model."""
    from finetune.models.checkpoint import REFERENCE, load_checkpoint

    return load_checkpoint(REFERENCE)[0].classifier.config.preprocessing


@pytest.fixture(scope="session")
def calibration_set(twenty_radiographs: Path, preprocessing: Preprocessing) -> CalibrationSet:
    """The radiographs that `built` is compared and calibrated on."""
    from xray_build.engines.calibration_set import read_calibration

    return read_calibration(twenty_radiographs, preprocessing, count=CALIBRATION_COUNT)


@pytest.fixture(scope="session")
def built(twenty_radiographs: Path, calibration_set: CalibrationSet, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The reference model through every command."""
    from tests.helpers.commands import Answer, Built, xray_build

    def build(parent: Path) -> None:
        folder = parent / "build"
        labelled = (twenty_radiographs / name for name in calibration_set.names)
        table = write_table(parent / "validation.csv", labelled)
        images = ["--images", twenty_radiographs, "--count", CALIBRATION_COUNT]
        commands = {
            "onnx": ["onnx", "reference", "--out", folder, *images],
            "fp16": ["fp16", folder],
            "plan": ["plan", folder],
            "rtx": ["plan", folder, "--compiler", "tensorrt-rtx", "--max-batch", 16],
            "int8": ["int8", folder, "--validation", table],
        }
        answers = {name: xray_build(*words) for name, words in commands.items()}
        text = json.dumps({name: [answer.exit_code, answer.output] for name, answer in answers.items()})
        (parent / "answers.json").write_text(text)

    parent = made_once(tmp_path_factory, "built", build)
    answers = json.loads((parent / "answers.json").read_text())
    return Built(parent / "build", {name: Answer(*answer) for name, answer in answers.items()})
