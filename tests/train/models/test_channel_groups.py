"""Networks of several kinds: gating after normalisation, removal, and what cannot be pruned."""

import pytest
import torch
from tests.train.models.channel_networks import (
    IMAGE,
    OURS,
    AddedToConcatenated,
    Concatenated,
    half,
    images,
    with_statistics,
)
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models import ResNet18, WideResNet, build
from s2ap_train.models.channel_groups import (
    channel_groups,
    channel_sums,
    gate_channels,
    gate_factors,
    remove_channels,
)
from s2ap_train.models.cost import flops

PARTS = ("weight", "bias")


@pytest.mark.parametrize("name", OURS)
def test_a_network_without_channels_answers_as_the_gated_one_and_is_rebuilt_from_its_architecture(name):
    model = with_statistics(OURS[name]())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    groups = channel_groups(model, model.image_shape)
    kept = half(groups)
    smaller = remove_channels(model, groups, kept)
    x = images(model.image_shape)
    gated = gate_channels(model, groups, kept)(x)
    assert type(smaller) is type(model)
    assert (smaller(x) - gated).abs().max() < 1e-5
    assert (smaller(x) - model(x)).abs().max() > 1e-2
    assert smaller.train()(x).shape == (4, 7)
    rebuilt = build(smaller.architecture(), seed=3)
    rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    assert torch.equal(rebuilt.eval()(x), smaller.eval()(x))
    assert rebuilt.architecture() == smaller.architecture()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", OURS)
def test_every_weight_but_the_last_outputs_of_our_networks_lies_in_one_group(name):
    model = OURS[name]()
    groups = channel_groups(model, model.image_shape, verify=False)
    produced = [weight for group in groups for weight in group.producers]
    read = [weight for group in groups for weight in group.consumers]
    layers = [key for key, parameter in model.named_parameters() if parameter.dim() > 1]
    assert sorted(produced) == sorted(set(layers) - {"classifier.weight"})
    assert sorted(read) == sorted(set(layers) - {layers[0]})
    norms = [f"{key}.{part}" for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for part in PARTS]
    assert sorted(gate for group in groups for gate in group.gates) == sorted(norms)
    assert [group.name for group in groups] == sorted((g.name for g in groups), key=layers.index)


def test_blocks_that_add_to_the_same_stream_share_one_gate():
    stream = next(
        g for g in channel_groups(ResNet18(width=0.125), (3, 32, 32), verify=False) if g.name == "stem.weight"
    )
    assert set(stream.producers) == {"stem.weight", "stages.0.0.conv2.weight", "stages.0.1.conv2.weight"}
    assert {"norm.weight", "stages.0.0.bn2.weight", "stages.0.1.bn2.bias"} <= set(stream.gates)
    assert "stages.1.0.downsample.1.weight" in stream.consumers
    wide = channel_groups(WideResNet(width=0.25), (3, 32, 32), verify=False)
    stream = next(g for g in wide if g.name == "stages.1.0.convolution2.weight")
    assert "stages.1.0.shortcut.1.weight" in stream.producers
    assert {"stages.1.1.norm1.weight", "stages.2.0.norm1.bias"} <= set(stream.gates), "norms that read the stream"


def test_a_resnet18_of_half_its_channels_has_under_half_of_the_operations_and_the_gated_logits():
    model = with_statistics(ResNet18())
    x = images(model.image_shape)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)  # statistics of these images, so that logits have the size of a trained network's
    groups = channel_groups(model.eval(), model.image_shape, verify=False)
    kept = half(groups)
    smaller = remove_channels(model, groups, kept)
    with torch.no_grad():
        assert (smaller(x) - gate_channels(model, groups, kept)(x)).abs().max() < 1e-5
        assert (smaller(x) - model(x)).abs().max() > 0.1
    assert flops(smaller, model.image_shape) <= 0.5 * flops(model, model.image_shape)


def test_gating_the_convolution_instead_would_not_be_removal():
    model = with_statistics(OURS["resnet18"]())
    groups = channel_groups(model, model.image_shape)
    kept = half(groups)
    x, before = images(model.image_shape), gate_channels(model, groups, kept)
    wrong = OURS["resnet18"]().eval()
    wrong.load_state_dict(model.state_dict())
    with torch.no_grad():
        for group in groups:
            for name in group.producers:
                wrong.get_parameter(name).mul_(kept[group.name].reshape(-1, 1, 1, 1))
    assert (wrong(x) - before(x)).abs().max() > 1e-3


def test_channels_can_be_removed_twice():
    model = with_statistics(OURS["resnet18"]())
    groups = channel_groups(model, model.image_shape)
    once = remove_channels(model, groups, half(groups))
    again = channel_groups(once, model.image_shape)
    assert [group.name for group in again] == [group.name for group in groups]
    twice = remove_channels(once, again, half(again, seed=1))
    assert twice.architecture()["channels"]["stages.2.0.conv1.weight"] == 8, "of 32"
    x = images(model.image_shape)
    assert (twice(x) - gate_channels(once, again, half(again, seed=1))(x)).abs().max() < 1e-5


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_groups_are_found_where_gradients_are_off_and_weights_are_frozen(mode):
    model = with_statistics(OURS["resnet18"]()).requires_grad_(False)
    expected = channel_groups(model, model.image_shape)
    with mode():
        groups = channel_groups(model, model.image_shape)
        smaller = remove_channels(model, groups, half(groups))
    assert groups == expected
    assert not any(parameter.requires_grad for parameter in smaller.parameters())
    assert smaller(images(model.image_shape)).shape == (4, 7)


def test_groups_that_are_not_named_keep_everything_and_frozen_weights_stay_frozen():
    model = with_statistics(OURS["vgg16_bn"]())
    model.features[0].weight.requires_grad_(False)
    groups = channel_groups(model, model.image_shape)
    name = groups[3].name
    smaller = remove_channels(model, groups, {name: torch.arange(groups[3].size) < 2})
    changed = [g.name for g in groups if smaller.get_parameter(g.name).shape[0] != model.get_parameter(g.name).shape[0]]
    assert changed == [name]
    assert [p.requires_grad for p in smaller.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not smaller.training
    assert smaller.features[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_normalisation_after_a_concatenation_is_gated_in_the_rows_of_each_group():
    model = Concatenated()
    groups = {group.name: group for group in channel_groups(model, IMAGE)}
    assert groups["second.weight"].gated["norm.weight"].rows == (-1,) * 8 + tuple(range(6))
    assert "second.weight" not in groups["second.weight"].gates, "all its readers see it normalised"
    assert "first.bias" in groups["first.weight"].gates, "the second convolution reads it as it is"
    gates = {name: torch.arange(group.size) / group.size for name, group in groups.items()}
    factors = gate_factors(tuple(groups.values()), gates, dict(model.named_parameters()))
    expected = torch.cat([gates["first.weight"], gates["second.weight"]])
    assert torch.equal(factors["norm.weight"], expected)
    assert factors["first.weight"].shape == (8, 1, 1, 1)


def test_gate_factors_are_differentiable_in_the_gates():
    model = Concatenated()
    groups = channel_groups(model, IMAGE)
    gates = {group.name: torch.ones(group.size, requires_grad=True) for group in groups}
    parameters = dict(model.named_parameters())
    gated = {name: parameters[name] * factor for name, factor in gate_factors(groups, gates, parameters).items()}
    logits = torch.func.functional_call(model, gated, (images(IMAGE),))
    slopes = torch.autograd.grad(logits.square().sum(), list(gates.values()))
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_channel_sums_add_up_every_layer_that_produces_a_channel():
    model = AddedToConcatenated()
    (group,) = channel_groups(model, IMAGE)
    sizes = {name: p.detach().abs() for name, p in model.named_parameters()}
    by_layer = [sizes[f"{layer}.weight"].sum(dim=(1, 2, 3)) for layer in ("whole", "left", "right")]
    expected = by_layer[0] + torch.cat(by_layer[1:])
    torch.testing.assert_close(channel_sums((group,), sizes)[group.name], expected)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"nothing": torch.ones(8, dtype=torch.bool)}, r"channels are given for \['nothing'\]; the groups are"),
        ({"whole.weight": torch.ones(14)}, "got a torch.float32 mask"),
        ({"whole.weight": torch.ones(13, dtype=torch.bool)}, r"mask of shape \(13,\)"),
        ({"whole.weight": torch.zeros(14, dtype=torch.bool)}, "0 channels kept; expected .* keeps at least one"),
        ({"whole.weight": torch.arange(14) < 8}, "nothing would be left of right.weight"),
    ],
)
def test_channels_that_cannot_be_kept_are_refused(kept, message):
    model = AddedToConcatenated()
    groups = channel_groups(model, IMAGE)
    with pytest.raises(RecipeError, match=message):
        remove_channels(model, groups, kept)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"stem.weight": 9}, "9 channels of group stem.weight cannot be kept, it has 8"),
        ({"stem.weight": 0}, "0 channels of group stem.weight cannot be kept"),
        ({"root.weight": 1}, "expected counts of some of the groups stem.weight, "),
        ([4], r"channels are \[4\]"),
    ],
)
def test_a_network_is_not_rebuilt_with_channels_that_it_cannot_have(channels, message):
    with pytest.raises(RecipeError, match=message):
        build({**OURS["resnet18"]().architecture(), "channels": channels})
