"""Channels that masks left dead are taken out, and every answer stays."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from s2ap_defend.manifest import Seeds
from s2ap_train.hardening.network import Network, lean
from s2ap_train.models import Classifier, SmallCNN, build, create, fold_batch_norm
from s2ap_train.models.cost import flops
from s2ap_train.models.dead_channels import without_dead_channels

SHAPE = (1, 8, 8)


def masked(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """A network with random masks on its weights; normalisations have statistics, and their masked filters none."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.rand(module.weight.shape, generator=generator) >= sparsity
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
            module.bias.data.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def images(shape: tuple[int, int, int], count: int = 6) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1))


def numbers(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


NETWORKS = {
    "small cnn": (lambda: SmallCNN(1, 10, (8, 16, 16)), SHAPE),
    "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4), (3, 32, 32)),
}


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.97, 0.995])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_left_answers_the_same(name: str, sparsity: float) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = masked(make(), sparsity)
    before = copy.deepcopy(model.state_dict())
    x = images(shape)
    with torch.no_grad():
        expected = model(x)
        lean = without_dead_channels(model, shape)
        scale = float(expected.abs().max())
        assert float((lean.model(x) - expected).abs().max()) <= 1e-5 * scale
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (lean.removed > 0) == (lean.model is not model) == (numbers(lean.model) < numbers(model))
    if sparsity >= 0.97:
        assert lean.removed > 0
        assert without_dead_channels(lean.model, shape).removed == 0, "again until none is left"


@pytest.mark.parametrize("table", [{"name": "resnet18", "width": 0.125}, {"name": "small_cnn", "widths": [8, 16, 16]}])
def test_a_lean_network_says_how_it_is_made_again(table: dict[str, Any]) -> None:
    model = masked(create(table, (3, 16, 16), 5), 0.98)
    lean = without_dead_channels(model, (3, 16, 16))
    assert lean.removed > 0
    assert isinstance(lean.model, Classifier)
    again = build(lean.model.architecture()).eval()
    again.load_state_dict(lean.model.state_dict())
    x = images((3, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(again(x), lean.model(x))
        torch.testing.assert_close(lean.model(x), model(x), rtol=1e-5, atol=1e-6)


class Chain(nn.Module):
    """Two convolutions and a head, whose channels are known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))
        return logits


def test_channels_that_nobody_reads_or_that_are_zero_go_and_constant_ones_stay() -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    model.two.weight.data[:, 0] = 0  # nobody reads channel 0 of the first
    model.one.weight.data[1] = 0
    model.one.bias.data[1] = 0  # channel 1 is zero
    model.one.weight.data[2] = 0  # channel 2 is its bias: it stays
    model.head.weight.data[:, 4] = 0  # nobody reads channel 4 of the second, ...
    model.two.weight.data[:4, 3] = 0  # ... which alone reads channel 3 of the first
    x = images(SHAPE)
    lean = without_dead_channels(model, SHAPE)
    assert lean.removed == 4
    assert isinstance(lean.model, Chain)
    assert lean.model.one.weight.shape == (1, 1, 3, 3)
    assert torch.equal(lean.model.one.bias, model.one.bias[2:3])
    assert lean.model.two.weight.shape == (4, 1, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(lean.model(x), model(x), rtol=1e-6, atol=1e-7)


def test_a_dense_network_is_handed_back_as_it_is() -> None:
    model = SmallCNN(1, 10, (4, 4, 4)).eval()
    assert without_dead_channels(model, SHAPE).model is model


def test_one_channel_stays_where_all_are_dead() -> None:
    model = Chain().eval()
    for parameter in (model.one.weight, model.one.bias):
        parameter.data.zero_()
    lean = without_dead_channels(model, SHAPE)
    assert lean.removed == 3
    with torch.no_grad():
        torch.testing.assert_close(lean.model(images(SHAPE)), model(images(SHAPE)))


def test_a_folded_network_loses_filters_whose_bias_is_zero_too() -> None:
    torch.manual_seed(0)
    model = fold_batch_norm(SmallCNN(1, 10, (8, 8, 8)).eval())
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight.data[:3] = 0
    first.bias.data[:3] = 0
    lean = without_dead_channels(model, SHAPE)
    assert lean.removed >= 3
    with torch.no_grad():
        torch.testing.assert_close(lean.model(images(SHAPE)), model(images(SHAPE)), rtol=1e-5, atol=1e-6)


def test_a_lean_member_says_what_it_counts_now() -> None:
    torch.manual_seed(0)
    model = masked(SmallCNN(1, 10, (8, 16, 16)), 0.97)
    assert isinstance(model, SmallCNN)
    known = {"sparsity": 0.97, "adversarially_trained": True, "clean_accuracy": 0.5, "robust_accuracy": 0.4}
    network = Network(
        model=model,
        method="s2ap",
        seeds=Seeds(initialisation=0, mask=0, order=0),
        flops=1,
        parameters=2,
        seconds=3,
        **known,
    )
    smaller = lean(network)
    assert smaller.parameters == numbers(smaller.model) < numbers(model)
    assert smaller.flops < flops(model, SHAPE)
    assert (smaller.method, smaller.sparsity, smaller.clean_accuracy) == ("s2ap", 0.97, 0.5)
    dense = replace(network, model=SmallCNN(1, 10, (4, 4, 4)).eval())
    assert lean(dense) is dense
