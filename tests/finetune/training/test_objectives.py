"""What each objective and option of training does to the network, on features and on small radiographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from finetune.data.sampling import CachedRadiographs
from finetune.models.classifier import ModelConfig, RadiographClassifier
from finetune.run import main
from finetune.settings import TrainSettings
from finetune.training.trainer import interpolate, train_full, train_head


@pytest.fixture(scope="module")
def start() -> RadiographClassifier:
    torch.manual_seed(0)
    return RadiographClassifier(ModelConfig(dropout=0.0))


def _copy(start: RadiographClassifier) -> RadiographClassifier:
    classifier = RadiographClassifier(start.config, pretrained=False)
    classifier.load_state_dict(start.state_dict())
    classifier.prompt_embeddings = start.prompt_embeddings
    return classifier


def _features(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean features of two classes that differ in a tenth of the channels."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    features = torch.rand(n, 1280, generator=random)
    features[:, :128] += labels[:, None]
    return features, labels


@pytest.mark.parametrize("objective", ["supervised", "contrastive", "both"])
def test_every_objective_learns_to_tell_the_classes_apart(start: RadiographClassifier, objective: str) -> None:
    classifier = _copy(start)
    auroc = train_head(classifier, _features(), _features(32), TrainSettings(head_epochs=20, objective=objective))
    assert auroc > 0.95


def test_contrast_leaves_the_meaning_of_the_prompts_alone(start: RadiographClassifier) -> None:
    classifier = _copy(start)
    train_head(classifier, _features(), _features(32), TrainSettings(head_epochs=3, objective="contrastive"))
    torch.testing.assert_close(classifier.class_embeddings, start.class_embeddings)
    assert not torch.equal(classifier.projection.weight, start.projection.weight)


def _radiographs(size: int = 64) -> CachedRadiographs:
    random = np.random.default_rng(0)
    labels = np.arange(16) % 2
    images = random.integers(0, 128, (16, size, size), dtype=np.uint8) + (labels * 90).astype(np.uint8)[:, None, None]
    return CachedRadiographs(images, np.arange(16), labels, augmentation=0.0)


def _settings(**options: object) -> TrainSettings:
    return TrainSettings(epochs=1, batch_size=8, precision="32", workers=0, **options)  # type: ignore[arg-type]


def test_the_running_average_is_what_is_validated_and_kept(start: RadiographClassifier) -> None:
    plain, averaged = _copy(start), _copy(start)
    train_full(plain, _radiographs(), _radiographs(), _settings(), None)
    train_full(averaged, _radiographs(), _radiographs(), _settings(average=0.9), None)
    moved, moved_less = ((c.projection.weight - start.projection.weight).norm().item() for c in (plain, averaged))
    assert 0 < moved_less < moved


@pytest.mark.parametrize(("choice", "moves"), [("fixed", False), ("learnt", True)])
def test_batch_statistics_move_only_where_they_are_learnt(
    start: RadiographClassifier, choice: str, moves: bool
) -> None:
    classifier = _copy(start)
    train_full(classifier, _radiographs(), _radiographs(), _settings(batch_statistics=choice), None)
    before = start.state_dict()
    after = classifier.state_dict()
    assert any(not torch.equal(after[name], before[name]) for name in before if "running_mean" in name) == moves


def test_training_is_in_training_mode_whatever_was_done_before(start: RadiographClassifier) -> None:
    seen: list[bool] = []
    classifier = _copy(start).eval()
    classifier.dropout.register_forward_hook(lambda module, *_: seen.append(module.training))
    train_head(classifier, _features(), _features(32), TrainSettings(head_epochs=1))
    assert True in seen, "dropout is active in training steps"
    assert False in seen, "and not in validation"


def test_interpolation_goes_from_start_to_end(start: RadiographClassifier) -> None:
    end = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in start.state_dict().items()}
    half = interpolate(start.state_dict(), end, 0.5)
    torch.testing.assert_close(half["projection.weight"], start.projection.weight.detach() + 0.5)
    assert all(torch.equal(tensor, end[name]) for name, tensor in interpolate(half, end, 1.0).items())


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--model", "medclip-vit"], "needs weights"), (["--weights", "official"], "brings its own weights")],
)
def test_weights_are_asked_for_where_they_are_needed_and_only_there(options: list[str], said: str) -> None:
    result = CliRunner().invoke(main, ["--data", "x", *options])
    assert result.exit_code == 2
    assert said in result.output
