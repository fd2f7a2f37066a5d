"""The served graph in PyTorch: uint8 radiographs in, the four outputs of the contract out. This graph is exported."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xray_client import FINDINGS

from .classifier import TOWERS, RadiographClassifier
from .decision import DecisionRule

UNCERTAIN = FINDINGS.index("Uncertain")


class ServedModel(nn.Module):
    """Classifier with calibration, decision and novelty.

    Args:
        classifier: Fine-tuned or zero-shot network.
        rule: Calibration, band and novelty; None = neutral values, to be filled from a checkpoint.
    """

    temperature: Tensor
    bias: Tensor
    band: Tensor
    novelty_centre: Tensor
    novelty_whitening: Tensor
    novelty_limit: Tensor

    def __init__(self, classifier: RadiographClassifier, rule: DecisionRule | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        rule = rule or DecisionRule.neutral(TOWERS[classifier.config.architecture].channels)
        self.register_buffer("temperature", torch.tensor(rule.calibration.temperature))
        # Half of the bias on each logit, so that their softmax is the calibrated probability.
        self.register_buffer("bias", torch.tensor([-0.5, 0.5]) * rule.calibration.bias)
        self.register_buffer("band", torch.tensor(rule.band))
        self.register_buffer("novelty_centre", rule.novelty.centre)
        self.register_buffer("novelty_whitening", rule.novelty.whitening)
        self.register_buffer("novelty_limit", torch.tensor(rule.novelty.limit))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Map uint8 (n, 1, s, s) to probability (n, 2), decision int32 (n, 1), heatmap (n, h, w), novelty (n, 1)."""
        features = self.classifier.features(image)
        pooled = features.mean(dim=(2, 3))
        probability = torch.softmax((self.classifier.logits_of_pooled(pooled) + self.bias) / self.temperature, dim=1)
        pneumonia = probability[:, 1:2]
        decision = (pneumonia >= self.band[1]).to(torch.int32)
        uncertain = (pneumonia >= self.band[0]) & (pneumonia < self.band[1])
        decision = torch.where(uncertain, torch.full_like(decision, UNCERTAIN), decision)
        heatmap = self.classifier.patch_evidence(features) / self.temperature
        distance = ((pooled - self.novelty_centre) @ self.novelty_whitening).norm(dim=1, keepdim=True)
        return probability, decision, heatmap, distance / self.novelty_limit
