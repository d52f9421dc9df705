import pytest
import torch
from torch import nn

from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.models.cost import flops, layer_costs, parameter_count
from s2ap_train.pruning import Harp
from s2ap_train.pruning.masks import sparsity
from s2ap_train.pruning.structures import Unstructured


def test_flops_and_parameters_are_those_worked_out_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    assert flops(model, (2, 4, 4)) == 2 * (3 * 2 * 9 * 16) + 2 * 48 * 5
    assert parameter_count(model) == 3 * 2 * 9 + 3 + 48 * 5 + 5
    assert [(cost.weight, cost.flops, cost.parameters) for cost in layer_costs(model, (2, 4, 4), ())] == [
        ("0.weight", 1728, 54),
        ("3.weight", 480, 240),
    ]


@pytest.mark.parametrize(
    ("network", "million_multiplications", "parameters"),
    [(ResNet18, 555.4, 11_173_962), (VGG16, 313.2, 14_728_266), (WideResNet, 845.6, 5_849_050)],
)
def test_published_networks_have_their_published_size_at_width_one(network, million_multiplications, parameters):
    with torch.device("meta"):
        model = network()
    assert parameter_count(model) == parameters
    assert flops(model, (3, 32, 32)) / 2e6 == pytest.approx(million_multiplications, abs=0.05)


@pytest.mark.parametrize("network", [ResNet18, VGG16, WideResNet])
def test_half_of_the_channels_leave_a_quarter_of_the_flops_and_layer_costs_foresee_it(network):
    model = network(width=0.125)
    groups = channel_groups(model, model.image_shape, verify=False)
    costs = layer_costs(model, model.image_shape, groups)
    whole = flops(model, model.image_shape)
    assert sum(cost.flops for cost in costs) == whole
    kept = {group.name: torch.arange(group.size) < group.size // 2 for group in groups}
    left = flops(remove_channels(model, groups, kept), model.image_shape)
    shares = {name: float(channels.float().mean()) for name, channels in kept.items()}
    assert sum(cost.remaining(shares) for cost in costs) == pytest.approx(left)
    assert left <= 0.3 * whole


def test_layers_name_the_groups_that_they_write_and_read():
    model = SmallCNN(widths=(4, 6), pool_after=(0, 1))
    groups = channel_groups(model, model.image_shape)
    first, second, last = layer_costs(model, model.image_shape, groups)
    assert (first.outputs, first.inputs) == ("blocks.0.convolution.weight", None)
    assert (second.outputs, second.inputs) == ("blocks.1.convolution.weight", "blocks.0.convolution.weight")
    assert (last.outputs, last.inputs) == (None, "blocks.1.convolution.weight")
    assert second.remaining({"blocks.0.convolution.weight": 0.5}) == second.flops / 2
    assert second.remaining({"blocks.0.convolution.weight": 0.5, "blocks.1.convolution.weight": 0.5}) == (
        second.flops / 4
    )


class Wide(nn.Module):
    """A layer that reads two concatenated groups."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(1, 6, 1), nn.Conv2d(1, 2, 1), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.cat([self.left(x), self.right(x)], dim=1).relu().mean(dim=(2, 3)))


def test_inputs_of_two_groups_count_with_their_shares():
    model = Wide()
    groups = channel_groups(model, (1, 4, 4))
    head = layer_costs(model, (1, 4, 4), groups)[-1]
    assert head.inputs is None
    assert head.input_shares == {"left.weight": 0.75, "right.weight": 0.25}
    assert head.remaining({"left.weight": 0.5, "right.weight": 0.5}) == head.flops / 2
    assert head.remaining({"left.weight": 1 / 3}) == pytest.approx(head.flops / 2)
    kept = torch.tensor(0.5, requires_grad=True)
    (slope,) = torch.autograd.grad(head.share({"left.weight": kept}), kept)
    assert float(slope) == 0.75


def test_a_depthwise_layer_shrinks_once_with_its_channels():
    model = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    groups = channel_groups(model, (1, 4, 4))
    kept = {group.name: torch.arange(group.size) < 2 for group in groups}
    costs = layer_costs(model, (1, 4, 4), groups)
    assert [cost.share({"0.weight": 0.25}) for cost in costs] == [0.25, 0.25, 0.25]
    removed = remove_channels(model, groups, kept)
    assert [cost.flops for cost in layer_costs(removed, (1, 4, 4), ())] == [cost.flops / 4 for cost in costs]


def test_counting_leaves_the_modes_of_a_network_as_they_were():
    model = SmallCNN(widths=(4,), pool_after=()).train()
    before = model.blocks[0].norm.running_mean.clone()
    flops(model, model.image_shape)
    assert model.training
    assert torch.equal(model.blocks[0].norm.running_mean, before)


def test_biases_are_no_part_of_the_parameters_that_a_share_is_of():
    """512 weights in 256 rows of a layer with biases, 1024 in 4 rows of one without: one third, two thirds."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 4, bias=False))
    assert [cost.parameters for cost in layer_costs(model, (2, 1, 1), ())] == [512, 1024]


def test_the_parameter_target_of_harp_is_met_on_a_network_with_many_biases():
    """400 weights with 100 biases, and 400 with 4: were biases counted, unequal shares would miss the target."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 100), nn.ReLU(), nn.Linear(100, 4))
    structure, names = Unstructured(), ["1.weight", "3.weight"]
    allocation = Harp(0.7).allocation(structure, model, (4, 1, 1), names)
    with torch.no_grad():
        allocation.parameters()["quota.1.weight"].add_(1.0)
    scores = structure.initial_scores(model, "kaiming_normal", torch.Generator().manual_seed(0))
    masks = allocation.final_masks(scores)
    assert masks["1.weight"].sum() > masks["3.weight"].sum() + 50, "the shares are unequal"
    assert sparsity(masks) == pytest.approx(0.7, abs=2 / 800)
