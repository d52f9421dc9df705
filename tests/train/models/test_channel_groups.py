"""Networks of several kinds: gating after normalisation, removal, and what cannot be pruned."""

import pytest
import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet, build
from s2ap_train.models.channel_groups import (
    channel_groups,
    channel_report,
    channel_sums,
    gate_channels,
    gate_factors,
    remove_channels,
)
from s2ap_train.models.cost import flops

IMAGE = (3, 8, 8)


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalisation far from its start, with a shift that a gate before the normalisation would let through."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, low + 1, generator=generator)
    return model.eval()


def half(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
    for group in groups:
        kept[group.name][torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2]] = True
    return kept


def images(shape, count=4):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


PARTS = ("weight", "bias")
OURS = {
    "small_cnn": lambda: SmallCNN(3, 7, (8, 12, 10), 8, pool_after=(0, 2), seed=1),
    "resnet18": lambda: ResNet18(3, 7, 16, width=0.125, seed=1),
    "vgg16_bn": lambda: VGG16(3, 7, 16, width=0.125, seed=1),
    "wide_resnet_28_4": lambda: WideResNet(3, 7, 16, width=0.25, seed=1),
}


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


class Concatenated(nn.Module):
    """As in DenseNet: normalisation after a concatenation, features that are read twice, no normalisation before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.third = nn.Conv2d(14, 4, 1)
        self.last_norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        both = torch.cat([a, self.second(torch.relu(a))], dim=1)
        every = torch.cat([both, self.third(torch.relu(self.norm(both)))], dim=1)
        return self.head(torch.relu(self.last_norm(every)).mean(dim=(2, 3)))


class Separable(nn.Module):
    """As in MobileNet, with squeeze and excitation, PReLU and a linear layer behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.pointwise, self.active = nn.Conv2d(8, 12, 1), nn.PReLU(12)
        self.hidden, self.head = nn.Linear(12 * 64, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.depthwise(torch.relu(self.norm(self.first(x)))))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(dim=(2, 3), keepdim=True)))))
        return self.head(torch.relu(self.hidden(self.active(self.pointwise(x)).flatten(1))))


class AddedToConcatenated(nn.Module):
    """One convolution is coupled with two that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.left, self.right = nn.Conv2d(3, 14, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole(x) + torch.cat([self.left(x), self.right(x)], dim=1)).mean(dim=(2, 3))


USERS = {
    "concatenation": (Concatenated, {"first.weight": 8, "second.weight": 6, "third.weight": 4}),
    "separable": (
        Separable,
        {"first.weight": 8, "squeeze.weight": 4, "pointwise.weight": 12, "hidden.weight": 20},
    ),
    "added": (AddedToConcatenated, {"whole.weight": 14}),
    "flattened": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Flatten(), nn.BatchNorm1d(144), nn.ReLU(), nn.Linear(144, 6), nn.Linear(6, 5)
        ),
        {"0.weight": 4, "4.weight": 6},
    ),
}


@pytest.mark.parametrize("name", USERS)
def test_users_networks_lose_the_channels_that_are_gated(name):
    make, sizes = USERS[name]
    torch.manual_seed(0)
    model = with_statistics(make())
    groups = channel_groups(model, IMAGE)
    assert {group.name: group.size for group in groups} == sizes
    kept = half(groups)
    x = images(IMAGE)
    gated, smaller = gate_channels(model, groups, kept), remove_channels(model, groups, kept)
    assert (smaller(x) - gated(x)).abs().max() < 1e-5
    assert (smaller(x) - model(x)).abs().max() > 1e-3
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert smaller.train()(x).shape == (4, 5)


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


class Computed(nn.Module):
    """Two layers, and what is done between them."""

    def __init__(self, between, outputs: int = 8) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(outputs, 5)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.norm(self.first(x))).mean(dim=(2, 3)))


def shuffled(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, x.shape[1] // 2)).transpose(1, 2).flatten(1, 2)


def gated_linear(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return left * right


class Branches(nn.Module):
    """A head that two convolutions read, of which one is given; the other keeps the network prunable."""

    def __init__(self, between: nn.Module, channels: int = 8) -> None:
        super().__init__()
        self.first, self.between = nn.Conv2d(3, 8, 3, padding=1), between
        self.second, self.head = nn.Conv2d(channels, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(self.between(self.first(x)))).mean(dim=(2, 3)))


class Shared(nn.Module):
    """A layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.again(self.first(x))))).mean(dim=(2, 3)))


class Positions(nn.Module):
    """As in a vision transformer without normalisation: a class token, learned positions, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 5)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))
        self.scale, self.strength = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        x = x + self.strength * self.scale * torch.relu(self.mix(x))
        return self.head(x[:, 0])


def turned(x: Tensor) -> Tensor:
    return nn.functional.glu(nn.functional.pixel_shuffle(x, 2), dim=1)


KINDS = {
    "grouped by groups": (lambda: Branches(nn.Conv2d(8, 8, 3, padding=1, groups=4)), {"first.weight": 4}),
    "grouped by positions": (lambda: Branches(nn.Conv2d(8, 16, 3, padding=1, groups=2), 16), 4),
    "unequal groups": (
        lambda: Branches(nn.Sequential(nn.Conv2d(8, 16, 1, groups=4), nn.Conv2d(16, 16, 1, groups=8)), 16),
        {"first.weight": 4},
    ),
    "depthwise with a multiplier": (lambda: Branches(nn.Conv2d(8, 24, 3, groups=8), 24), {"first.weight": 8}),
    "transposed": (lambda: Branches(nn.ConvTranspose2d(8, 6, 2, 2), 6), {"first.weight": 8, "between.weight": 6}),
    "transposed groups": (lambda: Branches(nn.ConvTranspose2d(8, 16, 2, 2, groups=4), 16), {"first.weight": 4}),
    "group normalisation": (lambda: Branches(nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU())), {"first.weight": 4}),
    "instance normalisation": (lambda: Branches(nn.InstanceNorm2d(8, affine=True)), {"first.weight": 8}),
    "no running statistics": (lambda: Branches(nn.BatchNorm2d(8, track_running_stats=False)), {"first.weight": 8}),
    "halves that are multiplied": (lambda: Computed(gated_linear, 4), {"first.weight": 4}),
    "pixels in the place of channels": (lambda: Computed(turned, 1), {}),
    "channels in another order": (lambda: Computed(shuffled), {"first.weight": 4}),
    "a detached layer": (lambda: Computed(torch.detach), {"first.weight": 8}),
    "a layer that runs twice": (Shared, {"first.weight": 8}),
    "learned positions": (Positions, {"patches.weight": 8}),
}


@pytest.mark.parametrize("name", KINDS)
def test_layers_of_every_kind_lose_the_channels_that_are_gated(name):
    make, sizes = KINDS[name]
    torch.manual_seed(0)
    model = with_statistics(make())
    groups = channel_report(model, IMAGE).groups
    found = {group.name: group.size for group in groups}
    if isinstance(sizes, int):
        assert found["first.weight"] == sizes
    else:
        assert {name: found[name] for name in sizes} == sizes
    kept, x = half(groups), images(IMAGE)
    smaller = remove_channels(model, groups, kept)
    assert (smaller(x) - gate_channels(model, groups, kept)(x)).abs().max() < 1e-5
    assert smaller.train()(x).shape == (4, 5)
    if groups:
        assert flops(smaller, IMAGE) < flops(model, IMAGE)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(5))


REFUSED = {
    "a function that is not 0 at 0": (Computed(torch.sigmoid), "first.weight stays whole: removing some of its"),
    "sizes in the forward method": (Computed(lambda x: x.reshape(-1, 8, 8, 8)), "does not work with fewer of its"),
    "a mean over channels": (Computed(lambda x: x - x.mean(dim=1, keepdim=True)), "takes the mean over channels"),
    "layer normalisation": (
        sequence(nn.Flatten(2), nn.Unflatten(1, (8, 1)), nn.LayerNorm([8, 1, 36])),
        "LayerNorm 3 normalises over channels",
    ),
    "one group": (sequence(nn.GroupNorm(1, 8)), "GroupNorm 1 normalises over all channels"),
    "no scale": (sequence(nn.BatchNorm2d(8, affine=False)), "BatchNorm2d 1 has no scale and shift .*give it affine"),
    "computed weights": (
        sequence(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        "0.weight stays whole: ParametrizedConv2d 1 has a weight that is computed from others",
    ),
    "an operator that is not known": (Computed(lambda x: x.cumsum(dim=1)), "Computed computes cumsum"),
    "no hidden layers": (nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "it has no hidden layers"),
    "an error": (nn.Sequential(nn.Linear(3, 5)), "cannot be followed: RuntimeError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_by_channels_is_refused_by_name(name):
    model, message = REFUSED[name]
    if any(isinstance(module, nn.LazyLinear) for module in model.modules()):
        model(torch.zeros(2, *IMAGE))
    with pytest.raises(RecipeError, match=message) as caught:
        channel_groups(model, IMAGE)
    assert "use an unstructured or 2:4 mask" in str(caught.value)


def test_sizes_in_an_unflatten_keep_a_wide_layer_whole_and_the_others_are_pruned():
    model = nn.Sequential(
        *(nn.Flatten(), nn.Linear(192, 1024), nn.ReLU(), nn.Unflatten(1, (16, 8, 8)), nn.Conv2d(16, 8, 3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(288, 1024), nn.ReLU(), nn.Linear(1024, 5)),
    )
    report = channel_report(model, IMAGE)
    assert {group.name: group.size for group in report.groups} == {"4.weight": 8, "7.weight": 1024}
    assert report.whole.keys() == {"1.weight"}
    assert "the network does not work with fewer of its channels (unflatten" in report.whole["1.weight"]


def test_what_stays_whole_does_not_keep_other_channels_from_being_pruned():
    model = Branches(nn.Sequential(nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 1), nn.ReLU()))
    report = channel_report(model, IMAGE)
    assert [group.name for group in report.groups] == ["between.1.weight", "second.weight"]
    assert report.whole.keys() == {"first.weight"}
    assert report.whole["first.weight"].startswith("BatchNorm2d between.0 has no scale and shift")
    assert channel_groups(model, IMAGE) == report.groups


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
