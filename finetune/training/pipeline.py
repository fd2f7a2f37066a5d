"""One run from radiographs to a complete run folder; `finetune.run` is its command line."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from finetune.data.datamodule import prepare_data
from finetune.run_folder import RESUME_FOLDER
from finetune.settings import RunSettings

from .experiment import Experiment
from .outputs import write_outputs


def run(settings: RunSettings, folder: Path) -> dict[str, Any]:
    """Train, evaluate and write everything into `folder`; returns what is in its metrics.json.

    Raises:
        DataError: The radiographs cannot be trained on.
        CheckpointError: Weights to start from cannot be used.
    """
    started = time.monotonic()
    datamodule = prepare_data(settings.data, settings.output.cache_folder)
    experiment = Experiment(datamodule, settings.model, settings.training, folder)
    experiment.fit()
    seconds = time.monotonic() - started
    answer = experiment.fit_decision_rule(settings.answer)
    experiment.score("after", answer.calibration)
    metrics = write_outputs(folder, settings, experiment, answer, training_seconds=seconds)
    shutil.rmtree(folder / RESUME_FOLDER, ignore_errors=True)
    return metrics
