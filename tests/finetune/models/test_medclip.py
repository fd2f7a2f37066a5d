"""MedCLIP's own networks in the classifier: where they start, their heatmap, their export, their sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.errors import CheckpointError
from finetune.models.checkpoint import load_checkpoint, save_checkpoint
from finetune.models.classifier import TOWERS, ModelConfig, RadiographClassifier
from finetune.models.decision import Calibration, DecisionRule, Novelty
from finetune.models.medclip import (
    TOWER_CLASSES,
    MedCLIP,
    PretrainedMedCLIP,
    SwinTower,
    TextTower,
    load_medclip,
    semantic_matching_loss,
)
from finetune.models.prompts import PROMPTS, bert_tokenizer, class_embeddings
from finetune.models.served_model import ServedModel
from tests.helpers.small_medclip import BERT, SWIN, VOCABULARY, shake, small_medclip, write_vocabulary
from xray_build.artefacts import ONNX_FILE
from xray_build.engines.onnx_export import check_parity, export_onnx
from xray_client import LABELS

ARCHITECTURES = sorted(TOWER_CLASSES)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def official(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PretrainedMedCLIP:
    """A small checkpoint, saved and read back."""
    folder = tmp_path_factory.mktemp(request.param)
    write_vocabulary(folder)
    torch.manual_seed(0)
    model = small_medclip(request.param)
    shake(model)
    model.logit_scale.data = torch.tensor(3.0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return load_medclip(folder, request.param, model=small_medclip(request.param))


@pytest.fixture
def classifier(official: PretrainedMedCLIP) -> RadiographClassifier:
    is_swin = isinstance(official.model.vision_model, SwinTower)
    architecture = "medclip-vit" if is_swin else "medclip-resnet"
    return RadiographClassifier(ModelConfig(architecture=architecture), weights=official)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 1, 224, 224), dtype=np.uint8)


def test_with_official_weights_the_classifier_starts_at_medclips_projection_temperature_and_prompts(
    classifier: RadiographClassifier, official: PretrainedMedCLIP
) -> None:
    assert torch.equal(classifier.projection.weight, official.model.vision_model.projection.weight)
    assert classifier.scale.item() == pytest.approx(np.exp(3.0))
    assert [len(group) for group in classifier.prompt_embeddings] == [len(PROMPTS[label]) for label in LABELS]
    for group, mean in zip(classifier.prompt_embeddings, classifier.class_embeddings, strict=True):
        torch.testing.assert_close(group.norm(dim=1), torch.ones(len(group)))
        torch.testing.assert_close(mean, group.mean(dim=0))
    assert (classifier.class_embeddings.norm(dim=1) < 1).all(), "prompts that disagree make a class less certain"
    assert classifier.provenance == official.provenance


def test_the_projection_and_the_text_tower_are_not_part_of_the_tower(classifier: RadiographClassifier) -> None:
    names = classifier.state_dict().keys()
    assert "projection.weight" in names
    assert not [name for name in names if "projection_head" in name or "text_model" in name or "tower.model.fc" in name]
    assert classifier.tower.training
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_one_set_of_weights_starts_several_trainings(
    classifier: RadiographClassifier, official: PretrainedMedCLIP
) -> None:
    before = {name: tensor.clone() for name, tensor in official.model.state_dict().items()}
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in official.model.state_dict().items())


def test_the_patches_shares_add_up_to_the_difference_of_the_logits(
    classifier: RadiographClassifier, images: np.ndarray
) -> None:
    torch.manual_seed(1)
    torch.nn.init.normal_(classifier.adapter.weight, std=0.1)
    torch.nn.init.constant_(classifier.class_bias[1:], 0.7)
    classifier.eval()
    with torch.inference_mode():
        batch = torch.from_numpy(images)
        logits = classifier(batch)
        shares = classifier.patch_evidence(classifier.features(batch))
    assert shares.shape == (3, 7, 7)
    assert float(shares.std()) > 1e-4
    bias = classifier.class_bias[1] - classifier.class_bias[0]
    torch.testing.assert_close(shares.sum(dim=(1, 2)) + bias, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)


def test_the_places_of_swins_features_are_those_that_transformers_gives_them() -> None:
    torch.manual_seed(0)
    tower = SwinTower(SWIN).eval()
    rgb = torch.randn(2, 3, 224, 256)
    with torch.inference_mode():
        by_place = tower.model(rgb, output_hidden_states=True).reshaped_hidden_states[-1]
        expected = tower.model.layernorm(by_place.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        found = tower(rgb)
    assert found.shape == (2, 768, 7, 8)
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="at least 224 pixels"):
        tower(rgb[:, :, :192])


def test_all_of_a_tower_learns(classifier: RadiographClassifier, images: np.ndarray) -> None:
    torch.nn.functional.cross_entropy(classifier(torch.from_numpy(images)), torch.tensor([0, 1, 0])).backward()
    still = [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


# --- refusals


def test_medclip_lite_has_no_official_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"medclip-lite has no official weights .*medclip-vit"):
        RadiographClassifier(ModelConfig(), weights=tmp_path)


def test_weights_without_a_vocabulary_say_where_to_get_it(tmp_path: Path) -> None:
    torch.save(small_medclip("medclip-vit").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no vocabulary beside the weights, .*vocab\.txt of .*Bio_ClinicalBERT"):
        RadiographClassifier(ModelConfig(architecture="medclip-vit"), weights=tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("\n".join([*VOCABULARY, "more"]), f"it has {len(VOCABULARY) + 1} tokens, the text tower {len(VOCABULARY)}"),
        ("\n".join(["x", *VOCABULARY[1:]]), r"no \[PAD\]"),
        (b"\xff\xfe", "the vocabulary cannot be read"),
    ],
)
def test_another_vocabulary_is_refused(tmp_path: Path, content: str | bytes, words: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=words):
        bert_tokenizer(path, size=len(VOCABULARY))


def test_weights_of_the_other_network_are_refused_by_name(tmp_path: Path) -> None:
    write_vocabulary(tmp_path)
    torch.save(small_medclip("medclip-resnet").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"belong to another network.*missing vision_model.*--model"):
        load_medclip(tmp_path, "medclip-vit", model=small_medclip("medclip-vit"))


def test_an_embedding_of_another_width_is_refused(official: PretrainedMedCLIP) -> None:
    with pytest.raises(CheckpointError, match="512 dimensions, not 256"):
        RadiographClassifier(ModelConfig(architecture="medclip-vit", embedding_dim=256), weights=official)


# --- text and loss


def test_the_vocabulary_is_read_in_lower_case(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(write_vocabulary(tmp_path), size=len(VOCABULARY))
    assert tokenizer.tokenize("Pneumonia, NORMAL lung") == ["pneumonia", ",", "normal", "lung"]


def test_padding_counts_in_a_sentences_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = TextTower(BERT).eval()
    ids = torch.tensor([[2, 7, 8, 3]])
    padded = torch.nn.functional.pad(ids, (0, 4))
    with torch.inference_mode():
        alone = tower(ids, torch.ones_like(ids))
        beside_a_longer_one = tower(padded, (padded > 0).long())
    assert alone.shape == (1, 512)
    assert float((alone - beside_a_longer_one).abs().max()) > 1e-3


def test_the_semantic_matching_loss_is_least_where_radiographs_meet_texts_of_their_class() -> None:
    texts = torch.eye(2, 8)
    labels = torch.tensor([0, 1, 1])
    same = (labels[:, None] == torch.arange(2)[None]).float()
    losses = [float(semantic_matching_loss(texts[seen], texts, same, 1.0)) for seen in (labels, labels * 0, 1 - labels)]
    assert losses == sorted(losses)
    assert losses[0] < losses[2] - 0.1


def test_the_semantic_matching_loss_of_equal_embeddings_is_the_entropy_of_a_guess() -> None:
    same = torch.zeros(4, 4)
    embeddings = torch.ones(4, 8) / 8**0.5
    assert float(semantic_matching_loss(embeddings, embeddings, same, 14.3)) == pytest.approx(np.log(4))


# --- official size


@pytest.mark.slow
def test_full_sizes_are_the_official_ones() -> None:
    parameters = {"medclip-vit": 27_912_570, "medclip-resnet": 24_556_608}
    text = TextTower()
    assert sum(p.numel() for p in text.parameters()) == 108_703_488
    for architecture, expected in parameters.items():
        tower = TOWER_CLASSES[architecture](embedding_dim=512).eval()
        assert sum(p.numel() for p in tower.parameters()) == expected
        if architecture == "medclip-vit":
            assert len(MedCLIP(tower, text).state_dict()) == 433, "as transformers 4.57 saves them"
        info = TOWERS[architecture]
        with torch.inference_mode():
            features = tower(torch.zeros(1, 3, 224, 224))
        assert features.shape == (1, info.channels, 224 // info.stride, 224 // info.stride)
        assert tower.projection.weight.shape == (512, info.channels)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_weights_a_network_says_that_it_starts_random_and_can_be_saved(
    architecture: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"{architecture} starts from random values: no weights were given"):
        classifier = RadiographClassifier(ModelConfig(architecture=architecture))
    torch.testing.assert_close(classifier.class_embeddings.detach(), class_embeddings(512))
    assert classifier.provenance is None
    model = ServedModel(classifier).eval()
    save_checkpoint(model, tmp_path / "checkpoint", {})
    again, _ = load_checkpoint(tmp_path / "checkpoint")
    batch = torch.zeros(1, 1, 224, 224, dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(model(batch), again(batch), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exported_graph_agrees_with_pytorch(architecture: str, images: np.ndarray, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = RadiographClassifier(ModelConfig(architecture=architecture), pretrained=False).eval()
    torch.nn.init.normal_(classifier.class_embeddings, std=512**-0.5)
    batch = torch.from_numpy(images)
    with torch.inference_mode():
        pooled = classifier.features(batch).mean(dim=(2, 3))
    # Scales of a trained model: a novelty near 1, probabilities away from 0 and 1.
    novelty = Novelty(pooled.mean(dim=0), torch.eye(pooled.shape[1]), float(pooled.std(dim=0).norm()))
    model = ServedModel(classifier, DecisionRule(Calibration(), 0.5, (0.4, 0.6), 0.95, novelty)).eval()
    export_onnx(model, images, tmp_path / ONNX_FILE)
    parity = check_parity(model, tmp_path / ONNX_FILE, images)
    assert parity.images == 3
    assert parity.probability < 1e-5
    with torch.inference_mode():
        probability = model(batch)[0]
    assert (probability > 0.01).all(), "a probability of 0 would agree with anything"
