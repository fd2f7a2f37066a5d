"""How fast each part of the network learns, and when: stages of the tower, parameter groups, warm-up and cosine."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from torch import nn

from finetune.models.classifier import RadiographClassifier
from finetune.settings import TrainSettings

# timm: blocks.3.; transformers: encoder.layers.3.; torchvision: layer3.
_STAGE = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.|(?:^|\.)layer(\d+)\.")
_STEM = re.compile(r"(?:^|\.)(?:conv_stem|embeddings|conv1|bn1)\.")


def tower_stages(tower: nn.Module) -> list[list[str]]:
    """Names of the tower's parameters by stage, from the stem (0) to what lies behind the last block."""
    numbered: dict[str, int] = {}
    behind: list[str] = []
    for name, _ in tower.named_parameters():
        if match := _STAGE.search(name):
            numbered[name] = 1 + int(match.group(1) or match.group(2))
        elif _STEM.search(name):
            numbered[name] = 0
        else:
            behind.append(name)
    stages = [[name for name, at in numbered.items() if at == stage] for stage in sorted(set(numbered.values()))]
    return [*stages, behind] if behind else stages


def freeze(tower: nn.Module, stages: int) -> list[nn.Module]:
    """Stop the first stages from learning.

    Returns:
        Modules to keep in evaluation mode, so that their batch statistics stay as well.
    """
    named = dict(tower.named_parameters())
    frozen = {name for stage in tower_stages(tower)[:stages] for name in stage}
    for name in frozen:
        named[name].requires_grad_(False)
    return [
        module
        for path, module in tower.named_modules()
        if (own := [f"{path}.{name}" for name, _ in module.named_parameters(recurse=False)]) and set(own) <= frozen
    ]


def parameter_groups(
    classifier: RadiographClassifier, settings: TrainSettings, *, head_only: bool
) -> list[dict[str, object]]:
    """AdamW's groups: the head at its rate, each stage of the tower at `layer_decay` times that of the one behind it.

    Weight decay pulls on matrices and kernels; norms, biases and scales are left alone.
    """
    groups = _decayed(classifier.head_parameters(), settings.learning_rate, settings.weight_decay)
    if not head_only:
        named = dict(classifier.tower.named_parameters())
        rate = settings.tower_learning_rate
        for stage in reversed(tower_stages(classifier.tower)):
            groups += _decayed([named[name] for name in stage], rate, settings.weight_decay)
            rate *= settings.layer_decay
    return [group for group in groups if group["params"]]


def _decayed(parameters: Sequence[nn.Parameter], rate: float, decay: float) -> list[dict[str, object]]:
    learning = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in learning if p.ndim > 1], "lr": rate, "weight_decay": decay},
        {"params": [p for p in learning if p.ndim <= 1], "lr": rate, "weight_decay": 0.0},
    ]


def warm_up_and_cosine(total: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step: up for a twentieth of `total` steps, then a cosine down to nothing."""
    warm_up = max(1, total // 20)

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, total - warm_up))))

    return factor
