"""Plug-in of `xray_build`, found by entry point: reads a checkpoint as a model to build, and labelled radiographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from finetune.data.labels import LabelNames
from finetune.data.records import VAL
from finetune.data.sources import find_radiographs
from finetune.data.splits import load_splits
from finetune.models.checkpoint import checkpoint_folder, checkpoint_hashes, load_checkpoint
from finetune.models.classifier import TOWERS, ModelConfig, RadiographClassifier
from finetune.models.decision import Calibration, DecisionRule, Novelty
from finetune.models.served_model import ServedModel
from xray_build.engines.calibration_set import CalibrationSet, read_calibration
from xray_build.engines.int8 import Labelled
from xray_build.engines.pipeline import Buildable
from xray_client import ImageError, Preprocessing, load_radiograph

from .errors import CheckpointError, DataError
from .run_folder import PARITY_FILE

PHANTOMS = 16  # number to compare on where there are no radiographs
RANDOM = "random:"


def model(named: str | Path) -> Buildable:
    """Load a model to build: a run, a checkpoint folder, `reference`, or `random:medclip-vit` for random weights.

    Raises:
        CheckpointError: There is no usable checkpoint, or no such architecture.
    """
    if str(named).startswith(RANDOM):
        return random_model(str(named).removeprefix(RANDOM))
    folder = checkpoint_folder(Path(named))
    served, about = load_checkpoint(folder)
    preprocessing = served.classifier.config.preprocessing
    path = folder / PARITY_FILE
    own = read_calibration(path, preprocessing) if path.exists() else phantoms(preprocessing)
    point = float(about.get("decision", {}).get("operating_point", served.band[1]))
    band = tuple(float(value) for value in served.band)
    about = {**about, "checkpoint": checkpoint_hashes(folder)}
    name = f"{served.classifier.config.architecture} of {named}"
    return Buildable(served, name, preprocessing, point, band, own, about)


def phantoms(preprocessing: Preprocessing) -> CalibrationSet:
    """Draw radiographs that show whether a graph computes the same."""
    from .phantom import draw_phantom

    drawn = [draw_phantom(0, i, pneumonia=i % 2 == 1, patient=i) for i in range(PHANTOMS)]
    images = np.stack([preprocessing.apply(Image.fromarray(image)) for image in drawn])
    names = tuple(f"phantom {i}" for i in range(PHANTOMS))
    return CalibrationSet(images, names, "phantoms", seed=0, real=False)


def random_model(architecture: str) -> Buildable:
    """Make a model with random weights, scaled as training would: novelty near 1, probabilities away from 0 and 1.

    Raises:
        CheckpointError: There is no such architecture.
    """
    if architecture not in TOWERS:
        raise CheckpointError(f"architecture {architecture!r} is none of {', '.join(TOWERS)}")
    torch.manual_seed(0)
    config = ModelConfig(architecture=architecture)
    classifier = RadiographClassifier(config, pretrained=False).eval()
    torch.nn.init.normal_(classifier.class_embeddings, std=config.embedding_dim**-0.5)
    images = phantoms(config.preprocessing)
    with torch.inference_mode():
        pooled = classifier.features(torch.from_numpy(images.images)).mean(dim=(2, 3))
    novelty = Novelty(pooled.mean(dim=0), torch.eye(pooled.shape[1]), float(pooled.std(dim=0).norm()))
    served = ServedModel(classifier, DecisionRule(Calibration(), 0.5, (0.4, 0.6), 0.95, novelty)).eval()
    about = {"note": "random weights: for measuring speed alone"}
    return Buildable(served, f"{architecture}, random weights", config.preprocessing, 0.5, (0.4, 0.6), images, about)


def labelled(source: Path, splits: Path | None, preprocessing: Preprocessing, labels: str | None = None) -> Labelled:
    """Read the validation part of a run's splits or of a table, or else all radiographs of the source.

    Raises:
        DataError: The source or the splits cannot be understood, or a radiograph cannot be read.
    """
    found = find_radiographs(source, labels=LabelNames.parse(labels))
    radiographs = found.radiographs
    if splits is not None:
        radiographs = [radiographs[i] for i in load_splits(splits, radiographs, found.root).val]
    elif found.has_val:
        radiographs = [radiograph for radiograph in radiographs if radiograph.split == VAL]
    try:
        images = np.stack([load_radiograph(radiograph.path.read_bytes(), preprocessing) for radiograph in radiographs])
    except (ImageError, OSError) as err:
        raise DataError(f"a radiograph cannot be read: {err}", source=str(source)) from err
    return Labelled(images, np.array([radiograph.label for radiograph in radiographs]), str(source))
