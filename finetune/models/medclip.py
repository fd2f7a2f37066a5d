"""MedCLIP's own networks (Wang et al., EMNLP 2022), under the names of its official checkpoints.

    vision_model   Swin-T or ResNet-50, then 768 or 2048 -> 512 without bias
    text_model     Bio_ClinicalBERT, then 768 -> 512 without bias
    logit_scale    natural logarithm of the factor on the cosines

Everything is built from a configuration: nothing is downloaded, no device is assumed. The defaults are the official
sizes; tests use smaller ones. A tower returns its feature map, not the mean: MedCLIP projects the mean over patches, so
that each patch's share of the logit is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError

from .prompts import medclip_prompt_embeddings
from .weights import Provenance, load_official_weights, load_strictly

if TYPE_CHECKING:
    from transformers import BertConfig, SwinConfig

EMBEDDING_DIM = 512
# MedCLIP's limits of `logit_scale`; the upper one is ln 100, as MedCLIP rounds it.
LOGIT_SCALE_BOUNDS = (0.0, 4.6052)
VOCABULARY_SIZE = 28_996  # tokens of Bio_ClinicalBERT, BERT's cased vocabulary


class SwinTower(nn.Module):
    """Swin transformer: float (n, 3, s, s) -> features after its last norm, (n, channels, s / stride, s / stride).

    Args:
        config: Sizes; None = Swin-T, 768 channels and stride 32.
        embedding_dim: Width of the projection, see `take_projection`; None = no projection.
    """

    def __init__(self, config: SwinConfig | None = None, *, embedding_dim: int | None = None) -> None:
        from transformers import SwinConfig, SwinModel

        super().__init__()
        config = config or SwinConfig()
        self.model = SwinModel(config, add_pooling_layer=False)
        self.stride: int = config.patch_size * 2 ** (len(config.depths) - 1)
        self.smallest: int = self.stride * config.window_size
        self.projection_head = _projection(config.hidden_size, embedding_dim)

    def forward(self, rgb: Tensor) -> Tensor:
        """Compute the feature map; raise `ValueError` if it is smaller than a window."""
        if min(rgb.shape[2:]) < self.smallest:
            raise ValueError(f"this tower takes at least {self.smallest} pixels a side, not {tuple(rgb.shape[2:])}")
        height, width = (math.ceil(side / self.stride) for side in rgb.shape[2:])
        tokens = self.model(pixel_values=rgb).last_hidden_state
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    @property
    def projection(self) -> nn.Module:
        """Mean feature (n, channels) -> embedding (n, d)."""
        return self.projection_head

    def take_projection(self) -> nn.Linear:
        """Hand the projection over; the tower then holds what comes before it, and no more."""
        taken, self.projection_head = self.projection_head, nn.Identity()
        assert isinstance(taken, nn.Linear), "this tower has no projection"
        return taken


class ResNetTower(nn.Module):
    """ResNet of bottleneck blocks: float (n, 3, s, s) -> features (n, 2048, s / 32, s / 32).

    Args:
        blocks: Number of blocks in each of the four stages; None = ResNet-50.
        embedding_dim: Width of the projection, see `take_projection`; None = no projection.
    """

    def __init__(self, blocks: Sequence[int] | None = None, *, embedding_dim: int | None = None) -> None:
        from torchvision.models.resnet import Bottleneck, ResNet

        super().__init__()
        self.model = ResNet(Bottleneck, list(blocks or (3, 4, 6, 3)))
        # MedCLIP's projection takes the place of ImageNet's classifier, name included.
        self.model.fc = _projection(self.model.fc.in_features, embedding_dim)

    def forward(self, rgb: Tensor) -> Tensor:
        """Compute the feature map: torchvision's forward pass without pooling and last layer."""
        model = self.model
        x = model.maxpool(model.relu(model.bn1(model.conv1(rgb))))
        return model.layer4(model.layer3(model.layer2(model.layer1(x))))

    @property
    def projection(self) -> nn.Module:
        """Mean feature (n, 2048) -> embedding (n, d)."""
        return self.model.fc

    def take_projection(self) -> nn.Linear:
        """Hand the projection over; the tower then holds what comes before it, and no more."""
        taken, self.model.fc = self.model.fc, nn.Identity()
        assert isinstance(taken, nn.Linear), "this tower has no projection"
        return taken


def _projection(channels: int, embedding_dim: int | None) -> nn.Module:
    return nn.Identity() if embedding_dim is None else nn.Linear(channels, embedding_dim, bias=False)


TOWER_CLASSES: dict[str, type[SwinTower] | type[ResNetTower]] = {
    "medclip-vit": SwinTower,
    "medclip-resnet": ResNetTower,
}


class TextTower(nn.Module):
    """BERT and a projection: tokens -> embedding in the joint space.

    Args:
        config: Sizes, with at least two layers; None = Bio_ClinicalBERT.
        embedding_dim: Width of the joint space.
    """

    def __init__(self, config: BertConfig | None = None, *, embedding_dim: int = EMBEDDING_DIM) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.model = BertModel(config or BertConfig(vocab_size=VOCABULARY_SIZE))
        self.projection_head = nn.Linear(self.model.config.hidden_size, embedding_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed tokens, int64 (n, tokens) with their mask: float (n, d), not normalised.

        The hidden states 1, 2 and last are averaged over layers and tokens, including padding as in MedCLIP's training:
        a sentence's embedding depends on the longest one in its batch.
        """
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True).hidden_states
        return self.projection_head(torch.stack([states[1], states[2], states[-1]]).mean(dim=(0, 2)))


class MedCLIP(nn.Module):
    """Both towers and the temperature; its state dict has the names of the official checkpoints.

    Args:
        vision_model: Image tower with its projection.
        text_model: Text tower with the same embedding width.
    """

    def __init__(self, vision_model: SwinTower | ResNetTower, text_model: TextTower) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.text_model = text_model
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_images(self, rgb: Tensor) -> Tensor:
        """Embed normalised radiographs, float (n, 3, s, s): unit vectors (n, d)."""
        return nn.functional.normalize(self.vision_model.projection(self.vision_model(rgb).mean(dim=(2, 3))), dim=1)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed tokens, int64 (m, tokens): unit vectors (m, d)."""
        return nn.functional.normalize(self.text_model(input_ids, attention_mask), dim=1)

    def forward(self, rgb: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the scaled cosine of each radiograph with each text: (n, m)."""
        cosines = self.encode_images(rgb) @ self.encode_texts(input_ids, attention_mask).T
        return cosine_scale(self.logit_scale) * cosines


@dataclass(frozen=True)
class PretrainedMedCLIP:
    """MedCLIP with official weights and its embeddings of the class prompts.

    Attributes:
        model: Network in evaluation mode.
        prompt_embeddings: For each class float32 (prompts, d), unit length.
        provenance: Origin of the weights.
    """

    model: MedCLIP
    prompt_embeddings: list[Tensor]
    provenance: Provenance


def load_medclip(source: str | Path, architecture: str, *, model: MedCLIP | None = None) -> PretrainedMedCLIP:
    """Load official weights into our modules, and embed the class prompts with the text tower.

    Args:
        source: Source as in `weights.load_official_weights`.
        architecture: "medclip-vit" or "medclip-resnet".
        model: Network to load into; None = the official size.

    Raises:
        CheckpointError: The architecture has no official weights, the weights cannot be read or do not fit, or
            Bio_ClinicalBERT's vocabulary is missing.
    """
    if architecture not in TOWER_CLASSES:
        raise CheckpointError(
            f"{architecture} has no official weights",
            source=str(source),
            remedy=f"leave out --weights, or choose --model {' or '.join(TOWER_CLASSES)}",
        )
    weights = load_official_weights(source, architecture)
    if weights.vocabulary is None:
        raise CheckpointError(
            "no vocabulary beside the weights, which the class prompts need",
            source=str(source),
            remedy="put vocab.txt of emilyalsentzer/Bio_ClinicalBERT into the folder of the weights",
        )
    if model is None:
        model = MedCLIP(TOWER_CLASSES[architecture](embedding_dim=EMBEDDING_DIM), TextTower())
    load_strictly(model, weights.tensors, source=str(source))
    model.eval().requires_grad_(False)
    prompts = medclip_prompt_embeddings(
        model.text_model, weights.vocabulary, vocabulary_size=model.text_model.model.config.vocab_size
    )
    return PretrainedMedCLIP(model, prompts, weights.provenance)


def cosine_scale(logit_scale: Tensor) -> Tensor:
    """Return the factor on the cosines: exp of the parameter, within MedCLIP's limits; both scalar."""
    return logit_scale.clamp(*LOGIT_SCALE_BOUNDS).exp()


def semantic_matching_loss(
    image_embeddings: Tensor, text_embeddings: Tensor, label_similarity: Tensor, logit_scale: Tensor | float
) -> Tensor:
    """Compute MedCLIP's contrastive loss: soft cross-entropy with the softmax of the label similarity, both directions.

    Radiographs and texts need not be paired; any text about the same findings is a match.

    Args:
        image_embeddings: float (n, d), unit length.
        text_embeddings: float (m, d), unit length.
        label_similarity: float (n, m), product of the labels of radiograph and text; higher = more similar.
        logit_scale: Factor on the cosines, at least 1 (not its logarithm; see `cosine_scale`).

    Returns:
        Scalar, the mean of radiograph-to-text (mean over n) and text-to-radiograph (mean over m).
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T
    similarity = label_similarity.to(logits.dtype)
    from_images = nn.functional.cross_entropy(logits, similarity.softmax(dim=1))
    from_texts = nn.functional.cross_entropy(logits.T, similarity.T.softmax(dim=1))
    return (from_images + from_texts) / 2
