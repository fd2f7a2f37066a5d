"""Check of novelty: does it tell chest radiographs from other images?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from xray_client import XrayError, load_radiograph

from .predictors import Predictor

_IMAGES_PER_KIND = 64  # squares of noise, crops of photographs


def novelty_check(
    predictor: Predictor, known: NDArray[Any], folders: tuple[Path, ...], *, seed: int = 0
) -> dict[str, Any]:
    """Measure how well novelty tells chest radiographs from other images: AUROC, and the share over the limit.

    Args:
        predictor: Model to check.
        known: float (n,), novelty of the chest radiographs.
        folders: Folders of other images; noise and photographs that come with the libraries are always included.
        seed: Seed of noise and crops.

    Returns:
        Kind -> {"images", "auroc", "flagged", "unreadable"}; "chest radiographs" has the share of false alarms.
    """
    size = predictor.preprocessing.size
    random = np.random.default_rng(seed)
    kinds: dict[str, tuple[NDArray[Any], list[str]]] = {
        "noise": (random.integers(0, 256, (_IMAGES_PER_KIND, size, size), dtype=np.uint8), []),
        "photographs": (_photographs(size, random), []),
    }
    for folder in folders:
        kinds[folder.name] = _others(folder, predictor)
    found: dict[str, Any] = {
        "chest radiographs": {"images": len(known), "flagged": round(float((known > 1).mean()), 4)}
    }
    for name, (images, unreadable) in kinds.items():
        found[name] = {"images": len(images), "unreadable": unreadable}
        if len(images):
            novelty = predictor.predict(images, f"novelty of {name}").novelty
            labels = np.r_[np.zeros(len(known)), np.ones(len(novelty))]
            found[name]["auroc"] = round(float(roc_auc_score(labels, np.r_[known, novelty])), 4)
            found[name]["flagged"] = round(float((novelty > 1).mean()), 4)
    return found


def _photographs(size: int, random: np.random.Generator) -> NDArray[Any]:
    """Cut grey crops from the photographs of scikit-learn and matplotlib: uint8 (n, size, size)."""
    with Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        photographs = [portrait.convert("L")]
    photographs += [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    crops = []
    for i in range(_IMAGES_PER_KIND):
        photograph = photographs[i % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        crops.append(np.asarray(photograph.resize((size, size), box=(left, top, left + side, top + side))))
    return np.stack(crops)


def _others(folder: Path, predictor: Predictor) -> tuple[NDArray[Any], list[str]]:
    images, unreadable = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            images.append(load_radiograph(path, predictor.preprocessing)[0])
        except XrayError as err:
            unreadable.append(f"{path.name}: {err.message}")
    size = predictor.preprocessing.size
    return (np.stack(images) if images else np.empty((0, size, size), np.uint8)), unreadable
