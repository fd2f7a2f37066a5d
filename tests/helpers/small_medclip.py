"""MedCLIP small enough for a test: its own widths, few layers, random weights, a vocabulary that spells the prompts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import BertConfig, SwinConfig

from finetune.models.medclip import MedCLIP, ResNetTower, SwinTower, TextTower

# MedCLIP fixes 768 channels in front of both projections, so depth alone is small.
SWIN = SwinConfig(depths=[2, 2, 1, 1])
RESNET_BLOCKS = (1, 2, 1, 1)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)),
    *(*"-,.", "lung", "lungs", "chest", "normal", "pneumonia", "con", "##solidation", "Pneumonia", "Lung"),
]
# Four layers, so that the hidden states 1, 2 and last are three different ones.
BERT = BertConfig(vocab_size=len(VOCABULARY), num_hidden_layers=4, intermediate_size=128)


def small_medclip(architecture: str) -> MedCLIP:
    """Our modules; random."""
    tower = SwinTower(SWIN, embedding_dim=512) if architecture == "medclip-vit" else None
    return MedCLIP(tower or ResNetTower(RESNET_BLOCKS, embedding_dim=512), TextTower(BERT))


def write_vocabulary(folder: Path) -> Path:
    """`vocab.txt` in a folder."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n")
    return path


@torch.no_grad()
def shake(model: nn.Module, *, seed: int = 0) -> None:
    """Give every tensor a value of its own: tables that start at zero and batch statistics would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name == "logit_scale":
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.copy_(1 + 0.1 * noise.abs() if name.endswith("running_var") else tensor + 0.02 * noise)
