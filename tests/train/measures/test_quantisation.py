import math

import numpy as np
import pytest
import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import accuracy, robust_accuracy
from s2ap_train.data import load_digits
from s2ap_train.measures.quantisation import QuantisedLayer, int8_twin, quantisation_error
from s2ap_train.measures.sensitivity import input_gradients
from s2ap_train.models import SmallCNN, create, evaluation_view


def images(count=64, size=8, seed=0):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def quantised_layers(twin):
    return {name: m for name, m in twin.named_modules() if isinstance(m, QuantisedLayer)}


class UserNet(nn.Module):
    """A network that nobody knows how to fold: a residual addition, batch normalisation, and one layer used twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.shared = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.alias = self.shared
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        features = torch.relu(self.norm(self.stem(x)))
        features = features + torch.relu(self.shared(features))
        features = features + torch.relu(self.alias(features))
        return self.head(features.mean((2, 3)))


def test_a_linear_layer_in_integers_by_hand():
    """Weights 1.27 and -0.5 in steps of 0.01; inputs over [0, 2.55] in steps of 0.01."""
    layer = nn.Linear(2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.27, -0.504]]))
        layer.bias.fill_(0.125)
    quantised = QuantisedLayer(layer, 0.0, 2.55)
    assert quantised.weight_scale.tolist() == pytest.approx([0.01])
    assert quantised.input_zero_point.item() == 0
    output = quantised(torch.tensor([[0.333, 1.0], [9.0, -1.0]]))
    # levels 33 and 100 of the inputs, 127 and -50 of the weights; the second row saturates at 255 and 0
    expected = [(33 * 127 - 100 * 50) * 1e-4 + 0.125, 255 * 127 * 1e-4 + 0.125]
    assert output.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_the_range_of_an_input_holds_zero_exactly():
    layer = nn.Linear(2, 1)
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (-1.0, 2.0), (0.0, 0.0)):
        quantised = QuantisedLayer(layer, low, high)
        assert 0 <= quantised.input_zero_point.item() <= 255
        with torch.no_grad():
            assert quantised(torch.zeros(1, 2)).item() == layer.bias.item()


def test_every_output_channel_has_its_own_step_and_at_most_half_a_step_of_error():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(5, 3, 3, 3, generator=generator) * torch.logspace(-4, 2, 5)[:, None, None, None])
        layer.weight[2] = 0
    quantised = QuantisedLayer(layer, 0.0, 1.0)
    steps = quantised.weight_scale[:, None, None, None]
    levels = quantised.weight / steps
    torch.testing.assert_close(levels, levels.round(), rtol=1e-5, atol=1e-5)
    assert levels.abs().max() <= 127.001
    assert ((quantised.weight - layer.weight).abs() <= steps * 0.5001).all()
    assert torch.count_nonzero(quantised.weight[2]) == 0


@pytest.mark.parametrize("make", [lambda: SmallCNN(widths=(8, 12)), UserNet])
def test_pruned_weights_stay_exactly_zero(make):
    model = make().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.9] = 0
    before = {name: m.weight for name, m in evaluation_view(model).named_modules() if type(m) in (nn.Conv2d, nn.Linear)}
    twin = int8_twin(model, images())
    layers = quantised_layers(twin)
    assert layers.keys() == before.keys()
    for name, layer in layers.items():
        zero = before[name] == 0
        assert zero.double().mean() > 0.7
        assert torch.count_nonzero(layer.weight[zero]) == 0
        assert not torch.signbit(layer.weight[zero]).any()


def test_batch_normalisation_is_folded_where_we_know_how():
    twin = int8_twin(SmallCNN(widths=(8, 12)), images())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in twin.modules())
    assert len(quantised_layers(twin)) == 3  # two convolutions and the classifier


def test_any_module_of_convolutions_and_linear_layers_has_a_twin_and_keeps_its_own_weights_and_mode():
    model = UserNet().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    twin = int8_twin(model, images())
    assert model.training
    assert not twin.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert isinstance(twin.shared, QuantisedLayer)
    assert twin.alias is twin.shared
    assert not any(p.requires_grad for p in twin.parameters())
    error = quantisation_error(model.eval(), twin, images())
    assert error.signal_to_noise_db > 25
    assert set(error.weight_error) == {"stem", "shared", "head"}


@pytest.mark.parametrize(
    ("name", "layers", "norms"), [("resnet18", 21, 0), ("vgg16_bn", 14, 0), ("wide_resnet_28_4", 29, 12)]
)
def test_every_network_has_a_twin_that_says_the_same(name, layers, norms):
    """WideResNet's blocks begin with a normalisation that follows no convolution: those stay float."""
    network = create({"name": name, "width": 0.125}, (3, 32, 32), 10, 0)
    x = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    twin = int8_twin(network, x)
    assert len(quantised_layers(twin)) == layers
    assert sum(isinstance(m, nn.BatchNorm2d) for m in twin.modules()) == norms
    assert quantisation_error(network, twin, x).signal_to_noise_db > 25


def test_a_network_that_is_one_layer_has_a_twin():
    layer = nn.Linear(4, 2)
    twin = int8_twin(layer, torch.rand(8, 4))
    assert isinstance(twin, QuantisedLayer)


def test_the_signal_to_noise_ratio_is_that_of_eight_bits():
    """One linear layer, uniform inputs: the error of the input is uniform in half a step, that of the weight too.

    With n inputs of mean square 1/3 and weights of mean square s2: signal n s2 / 3 around a mean, noise n (s2 a2 / 12 +
    b2 / 12 / 3), a = 1/255 and b = max|w| / 127 the steps.
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(400, 50, bias=False)
    with torch.no_grad():
        layer.weight.copy_(2 * torch.rand(50, 400, generator=generator) - 1)
    x = torch.rand(500, 400, generator=generator)
    error = quantisation_error(layer, int8_twin(layer, x), x)
    signal = float(layer(x).detach().square().mean())
    noise = 400 * ((1 / 3) * (1 / 255) ** 2 / 12 + (1 / 127) ** 2 / 12 / 3)
    assert error.signal_to_noise_db == pytest.approx(10 * math.log10(signal / noise), abs=0.5)
    assert error.mean_logit_error == pytest.approx(math.sqrt(noise * 2 / math.pi), rel=0.05)  # of a normal error
    assert 0 < error.weight_error[""] < 0.01


def test_a_percentile_clips_outliers():
    layer = nn.Linear(1, 1)
    x = torch.cat([torch.linspace(0, 1, 1000), torch.tensor([100.0])])[:, None]
    exact, clipped = int8_twin(layer, x), int8_twin(layer, x, percentile=99.0)
    assert exact.input_scale.item() == pytest.approx(100 / 255)
    assert clipped.input_scale.item() < 1.01 / 255


def test_gradients_pass_the_rounding_as_if_it_were_not_there():
    model = SmallCNN(widths=(8, 16)).eval()
    x, y = images(32), torch.arange(32) % 10
    twin = int8_twin(model, x)
    exact, passed = input_gradients(model, x, y), input_gradients(twin, x, y)
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), passed.flatten(1))
    assert cosine.mean() > 0.95
    with torch.no_grad():
        assert len(torch.unique(twin(x)[:, 0])) > 16  # and the forward pass is not constant


def test_a_trained_network_keeps_its_accuracy_in_int8_and_gains_no_robustness():
    data = load_digits()
    x, y = torch.tensor(data.train.images), torch.tensor(data.train.labels)
    model = SmallCNN(widths=(8, 16, 16))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).repeat(4).split(100):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    twin = int8_twin(model.eval(), data.calibration.images)
    test, labels = data.test.images, data.test.labels
    assert accuracy(model, test, labels) > 0.9
    assert accuracy(twin, test, labels) == pytest.approx(accuracy(model, test, labels), abs=0.01)
    attacked = [robust_accuracy(net, test, labels, eps=0.1, steps=10) for net in (model, twin)]
    assert attacked[1] == pytest.approx(attacked[0], abs=0.05)
    error = quantisation_error(model, twin, test)
    assert error.agreement > 0.98
    assert error.largest_logit_error >= error.mean_logit_error > 0


def test_what_cannot_be_quantised_is_refused():
    with pytest.raises(RecipeError, match="nothing to quantise"):
        int8_twin(nn.Sequential(nn.Flatten(), nn.ReLU()), images())
    with pytest.raises(RecipeError, match="found 0 images"):
        int8_twin(SmallCNN(), np.empty((0, 1, 8, 8), np.float32))
    with pytest.raises(RecipeError, match="percentile above 50"):
        int8_twin(SmallCNN(), images(), percentile=10)
    with pytest.raises(RecipeError, match="use 'zeros'"):
        int8_twin(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), images())
