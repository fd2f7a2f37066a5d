"""Is the answer what it claims: robust to exposure and file, heatmap on what counts, novelty on what is new."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from xray_client import XrayError, load_radiograph

if TYPE_CHECKING:
    from .predictors import Predictor

MASKED_SHARE = 5  # one patch in so many
RANDOM_MASKS = 5
_EVERY_IMAGE = 64  # how many squares of noise, or crops of photographs

Change = Callable[[Tensor, float], Tensor]


def _noise(image: Tensor, level: float) -> Tensor:
    random = torch.Generator().manual_seed(0)
    return (image + level * torch.randn(image.shape, generator=random)).round().clamp(0, 255).to(torch.uint8)


# Name -> (what the level means, how, levels in rising order); the neutral level is among them.
CHANGES: Mapping[str, tuple[str, Change, tuple[float, ...]]] = {
    "brightness": ("factor", F.adjust_brightness, (0.6, 0.8, 1.0, 1.2, 1.4)),
    "contrast": ("factor", F.adjust_contrast, (0.6, 0.8, 1.0, 1.2, 1.4)),
    "gamma": ("exponent", F.adjust_gamma, (0.6, 0.8, 1.0, 1.25, 1.6)),
    "blur": ("sigma, pixels", lambda i, s: F.gaussian_blur(i, [9, 9], [s, s]) if s else i, (0.0, 0.5, 1.0, 1.5, 2.0)),
    "noise": ("sigma, grey levels", _noise, (0.0, 4.0, 8.0, 16.0)),
    "rotation": (
        "degrees",
        lambda i, d: F.rotate(i, d, interpolation=InterpolationMode.BILINEAR),
        (-15.0, -7.0, 0.0, 7.0, 15.0),
    ),
    "JPEG": (
        "quality, 100 = untouched",
        lambda i, q: F.jpeg(i, int(q)) if q < 100 else i,
        (10.0, 20.0, 40.0, 70.0, 100.0),
    ),
}  # fmt: skip


def robustness(judged: Predictor, images: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    """AUROC, sensitivity and specificity at the operating point, as the prepared radiographs are changed.

    Args:
        judged: What answers.
        images: uint8 (n, s, s).
        labels: int (n,).
        threshold: The operating point.

    Returns:
        Change -> {"unit", "levels", and a list of figures for each of "auroc", "sensitivity", "specificity"}.
    """
    found: dict[str, Any] = {}
    for name, (unit, change, levels) in CHANGES.items():
        rows = []
        for level in levels:
            changed = np.stack([change(torch.from_numpy(image)[None], level)[0].numpy() for image in images])
            probability = judged.answer(changed, f"{name} {level:g}").probability
            called = probability >= threshold
            auroc = roc_auc_score(labels, probability) if 0 < labels.mean() < 1 else float("nan")
            rows.append((auroc, called[labels == 1].mean(), (~called[labels == 0]).mean()))
        columns = np.array(rows, dtype=float).round(4).T.tolist()
        found[name] = {"unit": unit, "levels": list(levels)}
        found[name] |= dict(zip(("auroc", "sensitivity", "specificity"), columns, strict=True))
    return {"radiographs": len(images), "changes": found}


def masking_check(
    judged: Predictor, images: np.ndarray, labels: np.ndarray, patients: np.ndarray, *, seed: int = 0
) -> dict[str, Any] | None:
    """How much more the log-odds of Pneumonia fall when the hottest fifth of the patches is masked than random fifths.

    Masked patches take the radiograph's mean grey. Over radiographs of Pneumonia; None where there are none.

    Returns:
        Mean falls in log-odds, their difference with its interval over patients, and the share of radiographs in which
        the hottest fifth mattered more.
    """
    images, patients = images[labels == 1], patients[labels == 1]
    if not len(images):
        return None
    whole = judged.answer(images, "heatmaps")
    patches = whole.heatmap[0].size
    masked = max(1, patches // MASKED_SHARE)
    random = np.random.default_rng(seed)

    def fall(chosen: np.ndarray, what: str) -> np.ndarray:
        """Patches (n, masked) hidden -> fall of the log-odds (n,)."""
        hidden = np.zeros((len(images), patches), dtype=bool)
        np.put_along_axis(hidden, chosen, values=True, axis=1)
        rows, columns = (np.arange(images.shape[1]) * side // images.shape[1] for side in whole.heatmap.shape[1:])
        mask = hidden.reshape(whole.heatmap.shape)[:, rows][:, :, columns]
        mean = images.mean(axis=(1, 2), keepdims=True).round().astype(np.uint8)
        return _log_odds(whole.probability) - _log_odds(judged.answer(np.where(mask, mean, images), what).probability)

    hottest = np.argsort(whole.heatmap.reshape(len(images), -1), axis=1)[:, -masked:]
    of_hottest = fall(hottest, "masking the hottest fifth")
    picks = [random.permuted(np.tile(np.arange(patches), (len(images), 1)), axis=1) for _ in range(RANDOM_MASKS)]
    of_random = np.mean([fall(pick[:, :masked], "masking random fifths") for pick in picks], axis=0)
    difference = of_hottest - of_random
    _, index = np.unique(patients, return_inverse=True)
    count = index.max() + 1
    weights = random.multinomial(count, np.full(count, 1 / count), size=1000)[:, index]
    low, high = np.quantile((weights @ difference) / weights.sum(axis=1), [0.025, 0.975])
    return {
        "radiographs": len(images),
        "patches_masked": f"{masked} of {patches}",
        "fall_hottest": round(float(of_hottest.mean()), 4),
        "fall_random": round(float(of_random.mean()), 4),
        "difference": {"value": round(float(difference.mean()), 4), "low": round(low, 4), "high": round(high, 4)},
        "hottest_mattered_more": round(float((difference > 0).mean()), 4),
    }


def _log_odds(probability: np.ndarray) -> np.ndarray:
    p = np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)


def novelty_check(judged: Predictor, known: np.ndarray, folders: tuple[Path, ...], *, seed: int = 0) -> dict[str, Any]:
    """How well novelty tells chest radiographs from what is none: AUROC, and the share over the limit.

    Args:
        judged: What answers.
        known: float (n,), novelty of the chest radiographs.
        folders: Of other images; noise and photographs that come with the libraries are always tried.
        seed: Of noise and crops.

    Returns:
        Kind -> {"images", "auroc", "flagged", "unreadable"}; "chest radiographs" has the share flagged by mistake.
    """
    size = judged.preprocessing.size
    random = np.random.default_rng(seed)
    kinds: dict[str, tuple[np.ndarray, list[str]]] = {
        "noise": (random.integers(0, 256, (_EVERY_IMAGE, size, size), dtype=np.uint8), []),
        "photographs": (_photographs(size, random), []),
    }
    for folder in folders:
        kinds[folder.name] = _others(folder, judged)
    found: dict[str, Any] = {
        "chest radiographs": {"images": len(known), "flagged": round(float((known > 1).mean()), 4)}
    }
    for name, (images, unreadable) in kinds.items():
        found[name] = {"images": len(images), "unreadable": unreadable}
        if len(images):
            novelty = judged.answer(images, f"novelty of {name}").novelty
            labels = np.r_[np.zeros(len(known)), np.ones(len(novelty))]
            found[name]["auroc"] = round(float(roc_auc_score(labels, np.r_[known, novelty])), 4)
            found[name]["flagged"] = round(float((novelty > 1).mean()), 4)
    return found


def _photographs(size: int, random: np.random.Generator) -> np.ndarray:
    """Crops of the photographs of scikit-learn and matplotlib, in grey: uint8 (n, size, size)."""
    with Image.open(Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg") as portrait:
        photographs = [portrait.convert("L")]
    photographs += [Image.fromarray(image).convert("L") for image in load_sample_images().images]
    crops = []
    for i in range(_EVERY_IMAGE):
        photograph = photographs[i % len(photographs)]
        side = int(min(photograph.size) * random.uniform(0.4, 1.0))
        left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
        crops.append(np.asarray(photograph.resize((size, size), box=(left, top, left + side, top + side))))
    return np.stack(crops)


def _others(folder: Path, judged: Predictor) -> tuple[np.ndarray, list[str]]:
    images, unreadable = [], []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            images.append(load_radiograph(path, judged.preprocessing)[0])
        except XrayError as err:
            unreadable.append(f"{path.name}: {err.message}")
    size = judged.preprocessing.size
    return (np.stack(images) if images else np.empty((0, size, size), np.uint8)), unreadable
