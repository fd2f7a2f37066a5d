"""Learning rates: stages of the tower, parameter groups of the optimizer, warm-up and cosine."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from finetune.models.classifier import RadiographClassifier
from finetune.settings import TrainSettings

# timm: blocks.3.; transformers: encoder.layers.3.; torchvision: layer3.
_STAGE = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.|(?:^|\.)layer(\d+)\.")
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_STEM = re.compile(r"(?:^|\.)(?:conv_stem|embeddings|conv1|bn1)\.")


def tower_stages(tower: nn.Module) -> list[list[str]]:
    """Names of the tower's parameters by stage, from the stem (0) to the layers behind the last block."""
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


def freeze(tower: nn.Module, stages: int) -> None:
    """Exclude the parameters of the first stages from training."""
    named = dict(tower.named_parameters())
    for stage in tower_stages(tower)[:stages]:
        for name in stage:
            named[name].requires_grad_(False)


def fixed_modules(classifier: RadiographClassifier, *, batch_statistics: bool) -> list[nn.Module]:
    """Modules to keep in evaluation mode while training: frozen ones and, if asked for, all batch normalisation."""
    frozen = [
        module
        for module in classifier.tower.modules()
        if (own := list(module.parameters(recurse=False))) and not any(p.requires_grad for p in own)
    ]
    if not batch_statistics:
        return frozen
    return [*frozen, *(module for module in classifier.modules() if isinstance(module, _BATCH_NORMS))]


def parameter_groups(
    classifier: RadiographClassifier, settings: TrainSettings, *, head_only: bool
) -> list[dict[str, object]]:
    """Parameter groups for AdamW: the head at its rate, each tower stage at `layer_decay` times that of the next.

    Weight decay applies to matrices and kernels, not to norms, biases and scales.
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


def warm_up_and_cosine(optimizer: Optimizer, total: int) -> LRScheduler:
    """Schedule of the learning rate by step: linear warm-up over a twentieth of `total` steps, then a cosine to zero.

    Torch's, because `transformers.get_cosine_schedule_with_warmup` has a rate of zero in the first step.
    """
    warm_up = max(1, total // 20)
    rising = LinearLR(optimizer, start_factor=1 / warm_up, total_iters=warm_up - 1)
    falling = CosineAnnealingLR(optimizer, T_max=max(1, total - warm_up))
    return SequentialLR(optimizer, [rising, falling], milestones=[warm_up])
