"""How fast each part of the network learns."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from finetune.models.classifier import ModelConfig, RadiographClassifier, build_tower
from finetune.settings import TrainSettings
from finetune.training.optim import fixed_modules, freeze, parameter_groups, tower_stages, warm_up_and_cosine


@pytest.mark.parametrize(
    ("tower", "stages"),
    [(build_tower("medclip-lite", pretrained=False), 9), (torchvision.models.resnet18(weights=None), 6)],
)
def test_every_parameter_of_a_tower_is_in_one_stage_in_the_order_of_the_network(tower: nn.Module, stages: int) -> None:
    found = tower_stages(tower)
    names = [name for name, _ in tower.named_parameters()]
    assert [name for stage in found for name in stage] == names
    assert len(found) == stages


def test_each_stage_learns_more_slowly_than_the_one_behind_it_and_the_head_fastest() -> None:
    classifier = RadiographClassifier(ModelConfig(), pretrained=False)
    settings = TrainSettings(learning_rate=1e-2, tower_learning_rate=1e-3, layer_decay=0.5)
    rate = {
        id(p): group["lr"] for group in parameter_groups(classifier, settings, head_only=False) for p in group["params"]
    }  # type: ignore[attr-defined]
    named = dict(classifier.tower.named_parameters())
    by_stage = [{rate[id(named[name])] for name in stage} for stage in tower_stages(classifier.tower)]
    assert by_stage == [{1e-3 * 0.5**i} for i in reversed(range(9))]
    assert rate[id(classifier.projection.weight)] == 1e-2
    assert len(rate) == len(list(classifier.parameters())), "nothing is left out"


def test_weight_decay_leaves_norms_and_biases_alone() -> None:
    groups = parameter_groups(RadiographClassifier(ModelConfig(), pretrained=False), TrainSettings(), head_only=False)
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] > 0}  # type: ignore[attr-defined,operator]


def test_frozen_stages_neither_learn_nor_move_their_batch_statistics() -> None:
    classifier = RadiographClassifier(ModelConfig(), pretrained=False).train()
    nn.init.normal_(classifier.class_embeddings)  # without a class to tell apart nothing would learn
    stages = tower_stages(classifier.tower)
    freeze(classifier.tower, 3)
    for module in fixed_modules(classifier, batch_statistics=False):
        module.eval()
    before = {name: tensor.clone() for name, tensor in classifier.tower.state_dict().items()}
    optimizer = torch.optim.SGD(
        parameter_groups(classifier, TrainSettings(weight_decay=0), head_only=False),
        lr=1.0,  # type: ignore[arg-type]
    )
    classifier(torch.rand(4, 1, 64, 64) * 255)[:, 0].sum().backward()
    optimizer.step()
    moved = {name for name, tensor in classifier.tower.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not {name for name in moved if name.startswith(("conv_stem", "bn1", "blocks.0.", "blocks.1."))}
    assert stages[-1][0] in moved
    assert any(name.startswith("blocks.2.") and "running_mean" in name for name in moved)


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = warm_up_and_cosine(optimizer, 200)
    rates = []
    for _ in range(201):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[200] == pytest.approx(0.0, abs=1e-9)
