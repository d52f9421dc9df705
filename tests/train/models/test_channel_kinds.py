"""Users' networks and layers of every kind lose the channels that are gated, or it is said why they stay whole."""

import pytest
import torch
from tests.train.models.channel_networks import (
    IMAGE,
    AddedToConcatenated,
    Concatenated,
    half,
    images,
    with_statistics,
)
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.channel_groups import (
    channel_groups,
    channel_report,
    gate_channels,
    remove_channels,
)
from s2ap_train.models.cost import flops


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
