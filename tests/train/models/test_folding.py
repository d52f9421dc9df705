import pytest
import torch
from torch import nn

from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet, evaluation_view, fold_batch_norm
from s2ap_train.models.channel_groups import channel_groups, gate_channels


def trained_looking(model: nn.Module) -> nn.Module:
    """Give batch normalisation statistics and an affine part that are far from their start."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


NETWORKS = {
    "small_cnn": (lambda: SmallCNN(3, 7, (16, 16, 32), 16, pool_after=(0, 2)), 0),
    "resnet18": (lambda: ResNet18(3, 7, 16, width=0.125), 0),
    "vgg16_bn": (lambda: VGG16(3, 7, 16, width=0.125), 0),
    "wide_resnet_28_4": (
        lambda: WideResNet(3, 7, 16, width=0.25),
        12,
    ),  # those that read the stream: all before a block but the first, and the last
    "linear layers": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 7)),
        0,
    ),
    "normalised twice": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(1568, 7)
        ),
        1,
    ),
}


def images(count=16):
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_batch_norm_keeps_the_logits(name):
    make, left = NETWORKS[name]
    model = trained_looking(make())
    logits, folded = model(images()), fold_batch_norm(model.train())
    torch.testing.assert_close(folded(images()), logits, rtol=1e-5, atol=1e-5 * float(logits.detach().abs().max()))
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    norms = [module for module in folded.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == left
    assert model.training, "the network itself is left alone"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_view_for_attacks_has_the_logits_of_evaluation_mode(name):
    model = trained_looking(NETWORKS[name][0]())
    logits = model(images())
    torch.testing.assert_close(evaluation_view(model.train())(images()), logits, rtol=1e-5, atol=1e-4)


def test_the_view_follows_the_weights_of_copies_and_of_other_networks_of_the_same_layers():
    first, second = (trained_looking(ResNet18(3, 7, 16, width=0.125, seed=seed)) for seed in (1, 2))
    for model in (first, second, first):
        torch.testing.assert_close(evaluation_view(model)(images()), model(images()), rtol=1e-5, atol=1e-4)
    first.stem.weight.data.mul_(2)
    torch.testing.assert_close(evaluation_view(first)(images()), first(images()), rtol=1e-5, atol=1e-4)


def test_folding_keeps_zero_weights_zero_and_shares_nothing():
    model = trained_looking(ResNet18(3, 7, 16, width=0.125))
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data[0, ::2] = 0.0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    for name, module in folded.named_modules():
        if isinstance(module, nn.Conv2d):
            assert torch.equal(module.weight == 0, model.get_submodule(name).weight == 0)
    for parameter in folded.parameters():
        parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_gated_channels_are_exactly_zero_after_folding():
    model = trained_looking(ResNet18(3, 7, 16, width=0.125))
    groups = channel_groups(model, model.image_shape)
    kept = {group.name: torch.arange(group.size) % 2 == 0 for group in groups}
    folded = fold_batch_norm(gate_channels(model, groups, kept))
    stem = folded.stem(images() * 2 - 1)
    assert not stem[:, 1::2].any()
    assert stem[:, ::2].any(dim=(0, 2, 3)).all()


def test_a_computed_weight_is_folded_as_it_is_now_and_the_network_goes_on_computing_it():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
    model = trained_looking(nn.Sequential(layer, nn.BatchNorm2d(8), nn.Flatten()))
    for scale in (1.0, 3.0):
        layer.parametrizations.weight.original0.data.fill_(scale)
        logits, view = model(images()), evaluation_view(model)
        assert view is not model
        torch.testing.assert_close(view(images()), logits, rtol=1e-5, atol=1e-4)
    assert nn.utils.parametrize.is_parametrized(layer)


class ReadTwice(nn.Module):
    """The convolution's output is read with and without normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        return (x + self.norm(x)).flatten(1)


class CalledTwice(nn.Module):
    """One normalisation for two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.norm(self.first(x)) + self.norm(self.second(x))).flatten(1)


class Branching(nn.Module):
    """What is computed depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        return self.norm(x).flatten(1) if x.sum() > 0 else x.flatten(1)


@pytest.mark.parametrize("network", [ReadTwice, CalledTwice, Branching, nn.Flatten])
def test_what_cannot_be_folded_is_left_as_it_is(network):
    model = trained_looking(network())
    assert evaluation_view(model) is model
    folded = fold_batch_norm(model)
    assert torch.equal(folded(images()), model(images()))
    assert folded is not model
