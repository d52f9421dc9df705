import numpy as np
import pytest
import torch
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.fia import aggregate_gradient, fia, suppress
from s2ap_train.attacks.hidden_layer import hidden_layer, middle_layer
from s2ap_train.attacks.ila import along_reference, ila, projected_change
from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet

ROWS = [[1.0, -2.0, 2.0, 2.0], [0.0, -1.0, 1.0, 2.2]]  # of h = A x; here the logits are h itself
REFERENCE = np.array([-1.0, 1.0, -1.0, 1.0])  # sign(a_1 - a_0): where label 0 loses most
ALONG = np.array([-1.0, 1.0, -1.0, -1.0])  # sign(A^T v) for v = A REFERENCE = (-3, .2): another in the last pixel


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data = torch.tensor(rows)
    return layer


def network(head=((1.0, 0.0), (0.0, 1.0)), bias=(0.0, 0.0)):
    """Images [N, 1, 2, 2] -> h = A x, layer "1" -> logits, layer "2"."""
    last = linear(*(list(row) for row in head))
    last.bias = nn.Parameter(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(), linear(*ROWS), last)


def grey(count=1):
    return np.full((count, 1, 2, 2), 0.5, dtype=np.float32), np.zeros(count, dtype=np.int64)


def change(attacked, images):
    return (attacked.astype(np.float64) - images).reshape(len(images), -1)


RIGHT = (1.0, 0.0)  # added to the logits: label 0 is right on grey, and stays within reach


def test_ila_goes_along_the_features_of_the_reference_not_along_its_pixels():
    images, labels = grey()
    one = ila(network(bias=RIGHT), images, labels, seed=0, layer="1", steps=1)
    np.testing.assert_allclose(change(one, images)[0], 0.01 * ALONG, atol=1e-7)
    ten = ila(network(bias=RIGHT), images, labels, seed=0, layer="1")
    np.testing.assert_allclose(change(ten, images)[0], 0.03 * ALONG, atol=1e-7)


class Watched(nn.Module):
    """Remembers how far from grey the images were that it saw."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, []

    def forward(self, images):
        self.seen.append(round(float((images.detach() - 0.5).abs().max()), 6))
        return self.network(images)


def test_ila_makes_its_reference_in_steps_of_a_sixth_of_eps_and_goes_along_in_steps_of_a_third():
    images, labels = grey()
    model = Watched(network(bias=RIGHT))
    ila(model, images, labels, seed=0, layer="network.1", reference_steps=3, steps=4)
    is_right, reference, features, along = [0.0], [0.0, 0.005, 0.01], [0.0, 0.015], [0.0, 0.01, 0.02, 0.03]
    assert model.seen == [*is_right, *reference, *features, *along]


def test_without_a_reference_there_is_no_direction():
    images, labels = grey()
    still = ila(network(bias=RIGHT), images, labels, seed=0, layer="1", reference_step_size=0.0)
    assert np.array_equal(still, images)


def test_the_objective_of_ila_is_the_projection_worked_by_hand():
    features = hidden_layer(network(), "1")
    x = torch.full((1, 1, 2, 2), 0.5)
    clean, _ = features(x)
    direction = features(x + 0.03 * torch.tensor(REFERENCE, dtype=torch.float32).reshape(1, 1, 2, 2))[0] - clean
    torch.testing.assert_close(direction, torch.tensor([[-0.09, 0.006]]), rtol=1e-4, atol=1e-6)
    moved = features(x + 0.03 * torch.tensor(ALONG, dtype=torch.float32).reshape(1, 1, 2, 2))[
        0
    ]  # h moves by .03(-7,-4.2)
    expected = 0.03 * (7 * 3 - 4.2 * 0.2) / (3**2 + 0.2**2) ** 0.5
    both = projected_change(moved.repeat(2, 1), clean.repeat(2, 1), torch.cat([direction, -9 * direction]))
    torch.testing.assert_close(both, torch.tensor([expected, -expected]), rtol=1e-4, atol=0)


def test_each_image_follows_its_own_reference():
    features, x = hidden_layer(network(), "1"), torch.full((2, 1, 2, 2), 0.5)
    step = 0.03 * torch.tensor(REFERENCE, dtype=torch.float32).reshape(1, 1, 2, 2)
    reference = torch.cat([x[:1] + step, x[1:] - step])
    moved = along_reference(features, x, reference, eps=0.03, steps=4, step_size=0.01)
    np.testing.assert_allclose(change(moved.numpy(), x.numpy()), 0.03 * np.stack([ALONG, -ALONG]), atol=1e-7)


def test_ila_raises_its_objective_on_a_network_with_curvature():
    model = SmallCNN(seed=3).eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    reference = (x + 0.03 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()).clamp(0, 1)
    features = hidden_layer(model)
    clean, there = features(x)[0], features(reference)[0]
    moved = along_reference(features, x, reference, eps=0.03, steps=10, step_size=0.01)
    gained = projected_change(features(moved)[0], clean, there - clean)
    assert (gained > projected_change(there, clean, there - clean)).all()


HEAD = ((3.0, 4.0), (0.0, 1.0))


@pytest.mark.parametrize(("label", "expected"), [(0, [0.6, 0.8]), (1, [0.0, 1.0])])
def test_the_importance_on_a_linear_network_is_the_labels_row_whatever_the_masks(label, expected):
    features, x = hidden_layer(network(HEAD), "1"), torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    w = aggregate_gradient(features, x, torch.full((3,), label), masks=5, keep=0.3, generator=generator)
    torch.testing.assert_close(w, torch.tensor([expected] * 3))


class Squared(nn.Module):
    """Logit 0 is h_0^2 / 2 + h_1 with h the pixels themselves: its gradient is (mask x_0, 1)."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Flatten()

    def forward(self, images):
        h = self.pixels(images)
        first = h[:, 0].square() / 2 + h[:, 1]
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_the_importance_is_the_mean_gradient_over_masks_that_keep_that_share():
    masks, keep = 2000, 0.7
    features, generator = hidden_layer(Squared(), "pixels"), torch.Generator().manual_seed(0)
    w = aggregate_gradient(
        features, torch.ones(2, 1, 1, 2), torch.zeros(2, dtype=torch.long), masks=masks, keep=keep, generator=generator
    )
    shares = (w[:, 0] / w[:, 1]).numpy()
    np.testing.assert_allclose(shares, keep, atol=3 * (keep * (1 - keep) / masks) ** 0.5)
    assert shares[0] != shares[1]  # each image has its own masks
    torch.testing.assert_close(w.norm(dim=1), torch.ones(2))  # and its own norm


def test_masks_set_pixels_to_zero_and_nothing_else():
    seen = []

    def features(images):
        seen.append(images.detach())
        return images, images.flatten(1)

    x = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.1
    aggregate_gradient(
        features, x, torch.zeros(2, dtype=torch.long), masks=4, keep=0.5, generator=torch.Generator().manual_seed(0)
    )
    assert len(seen) == 4
    assert all(((images == x) | (images == 0)).all() for images in seen)


def test_fia_takes_the_features_of_the_label_away():
    images, labels = grey()
    model = network(HEAD, bias=(9.0, 0.0))  # A^T w for w = (.6, .8): (.6, -2, 2, 2.96)
    attacked = fia(model, images, labels, seed=0, layer="1")
    np.testing.assert_allclose(change(attacked, images)[0], -0.03 * np.array([1, -1, 1, 1]), atol=1e-7)
    one = fia(model, images, labels, seed=0, layer="1", steps=1, step_size=0.003)
    np.testing.assert_allclose(change(one, images)[0], -0.003 * np.array([1, -1, 1, 1]), atol=1e-7)


def test_fia_goes_in_steps_of_a_tenth_of_eps():
    images, labels = grey()
    model = Watched(network(HEAD, bias=(9.0, 0.0)))
    fia(model, images, labels, seed=0, layer="network.1", masks=2)
    assert model.seen[0] == 0.0
    assert model.seen[3:] == [round(0.003 * step, 6) for step in range(10)]  # after the two masked passes


@pytest.mark.parametrize(("momentum", "path"), [(1.0, [0.53, 0.53, 0.50]), (0.0, [0.53, 0.50, 0.53])])
def test_the_steps_of_fia_add_up_gradients_of_length_one(momentum, path):
    """The feature (x - .52)^2 turns its gradient round at each step of .03 from .5."""

    def features(images):
        h = (images - 0.52).square()
        return h, h.flatten(1)

    start = torch.full((1, 1, 1, 1), 0.5)
    for steps, expected in enumerate(path, start=1):
        moved = suppress(
            features, start, torch.ones_like(start), eps=0.2, steps=steps, step_size=0.03, momentum=momentum
        )
        assert moved.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (SmallCNN(), "blocks.2"),
        (ResNet18(width=0.1), "stages.1"),
        (WideResNet(width=0.25), "stages.1"),
        (VGG16(width=0.1), "features.21"),
        (network(), "1"),
    ],
)
def test_the_middle_layer_is_the_middle_of_the_main_chain(model, name):
    assert middle_layer(model) == name
    with torch.no_grad():
        h, logits = hidden_layer(model.eval())(torch.rand(2, *getattr(model, "image_shape", (1, 2, 2))))
    assert len(h) == len(logits) == 2


def test_features_are_those_of_the_network_cut_at_the_layer():
    model, x = SmallCNN(seed=1).eval(), torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    h, logits = hidden_layer(model, "blocks.1")(x)
    cut = x * 2 - 1
    for block in model.each_block()[:2]:
        cut = block(cut)
    torch.testing.assert_close(h, cut)
    torch.testing.assert_close(logits, model(x))
    assert not model.blocks[1]._forward_hooks


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.never, self.pair = nn.Identity(), nn.Identity(), nn.LSTM(4, 2, batch_first=True)

    def forward(self, images):
        return self.pair(self.twice(self.twice(images.flatten(1)))[:, None])[0][:, 0]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("blocks.9", r"layer 'blocks.9' is not in Odd; choose one of its layers: twice, never, pair"),
        ("pear", r"layer 'pear' is not in Odd; choose one of its layers: pair"),
        ("", r"layer '' is not in Odd"),
        ("twice", r"layer 'twice' gave 2 outputs in one pass, expected one tensor; name a layer"),
        ("never", r"layer 'never' gave 0 outputs in one pass"),
        ("pair", r"layer 'pair' gave a tuple in one pass"),
        (None, r"Odd has no chain of layers to take the middle of; name a layer: twice, never, pair"),
    ],
)
@pytest.mark.parametrize("attack", [ila, fia])
def test_a_layer_that_is_of_no_use_is_named(attack, layer, message):
    images = np.random.default_rng(0).random((4, 1, 2, 2), dtype=np.float32)
    model = Odd()
    labels = model(torch.from_numpy(images)).argmax(1).numpy()
    with pytest.raises(RecipeError, match=message):
        attack(model, images, labels, seed=0, layer=layer)


@pytest.mark.parametrize("attack", [ila, fia])
def test_a_plain_function_has_no_layers(attack):
    images, labels = grey()
    with pytest.raises(RecipeError, match="the classifier is a function, expected a torch module"):
        attack(lambda x: x.flatten(1), images, labels, seed=0)


@pytest.mark.parametrize(
    ("attack", "wrong"),
    [
        (ila, {"step_size": -0.1}),
        (ila, {"steps": 0}),
        (ila, {"eps": -0.1}),
        (fia, {"keep": 0.0}),
        (fia, {"masks": 0}),
        (fia, {"steps": 0}),
        (fia, {"eps": -0.1}),
    ],
)
def test_impossible_numbers_are_refused(attack, wrong):
    images, labels = grey()
    with pytest.raises(ValueError, match="needs"):
        attack(network(bias=RIGHT), images, labels, seed=0, layer="1", **wrong)
