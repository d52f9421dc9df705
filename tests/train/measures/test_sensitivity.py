import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.pgd import pgd
from s2ap_train.data import load_digits
from s2ap_train.measures.sanity import Check, SanityBudget, sanity_checks
from s2ap_train.measures.sensitivity import gradients_along_pgd, input_gradients, sensitivity
from s2ap_train.models import SmallCNN

EPS = 0.15


def linear(weight: Tensor):
    """Logits (w x, 0): the loss of class 0 is ln(1 + e^(-w x))."""

    def model(x):
        score = x.flatten(1) @ weight.flatten()
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    return model


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, generator=generator, dtype=dtype)
    images = torch.rand(20, 1, 4, 4, generator=generator, dtype=dtype)
    return weight, images, torch.zeros(20, dtype=torch.int64)


def test_gradient_norms_of_a_linear_model_are_those_of_its_formula():
    """g = -(1 - p) w with p the probability of the label."""
    weight, images, labels = case()
    found = sensitivity(linear(weight), images, labels, eps=0.01)
    wrong = 1 - torch.sigmoid(images.flatten(1) @ weight)
    assert found.gradient_l1 == pytest.approx(float((wrong * weight.abs().sum()).mean()))
    assert found.gradient_l2 == pytest.approx(float((wrong * weight.norm()).mean()))
    assert (found.zero_gradients, found.images_without_gradient) == (0.0, 0.0)


def test_curvature_of_a_linear_model_is_that_of_the_logistic_loss():
    """H = p (1 - p) w w^T, so |H d| along d = w / |w| is p (1 - p) |w|^2."""
    weight, images, labels = case()
    found = sensitivity(linear(weight), images, labels, eps=0.01, length=1e-5)
    p = torch.sigmoid(images.flatten(1) @ weight)
    assert found.curvature == pytest.approx(float((p * (1 - p) * weight.square().sum()).mean()), rel=1e-3)


def test_gradients_of_a_linear_model_point_one_way_along_pgd():
    weight, images, labels = case()
    assert sensitivity(linear(weight), images, labels, eps=0.1).step_cosine == pytest.approx(1.0)


def test_shattered_gradients_have_no_direction_along_pgd():
    """A ripple that a step of PGD, 0.025, moves by a quarter of a period: it turns round more often than not."""
    weight, images, labels = case()
    model, frequency = linear(weight), 2 * math.pi * 12.25 / 0.025
    found = sensitivity(lambda x: model(x + 0.01 * torch.sin(frequency * x)), images, labels, eps=0.1)
    assert -1 < found.step_cosine < 0
    assert found.curvature > 100 * sensitivity(model, images, labels, eps=0.1).curvature


def test_the_gradients_along_pgd_are_those_of_its_iterates():
    weight, images, labels = case()
    model = linear(weight)
    start = torch.Generator().manual_seed(5)
    points, gradients = gradients_along_pgd(model, images, labels, eps=0.1, steps=3, generator=start)
    assert points.shape == gradients.shape == (3, *images.shape)
    for steps in (1, 2):
        generator = torch.Generator().manual_seed(5)
        iterate = pgd(model, images, labels, eps=0.1, steps=steps, step_size=0.25 / 3, generator=generator)
        torch.testing.assert_close(points[steps], iterate)
        torch.testing.assert_close(gradients[steps], input_gradients(model, iterate, labels))


def test_half_of_the_gradient_is_zero_where_half_of_the_pixels_are_not_read():
    weight, images, labels = case()
    weight[:8] = 0
    found = sensitivity(linear(weight), images, labels, eps=0.1)
    assert (found.zero_gradients, found.images_without_gradient) == (0.5, 0.0)


def test_a_model_without_any_gradient_has_zeros_and_no_curvature_or_cosine():
    weight, images, labels = case()
    found = sensitivity(lambda x: linear(weight)(x.detach()), images, labels, eps=0.1)
    assert (found.gradient_l1, found.zero_gradients, found.images_without_gradient) == (0.0, 1.0, 1.0)
    assert (found.curvature, found.step_cosine) == (None, None)
    assert found.to_json()["curvature"] is None


class Masked(nn.Module):
    """A network behind something that hides its gradient."""

    def __init__(self, network, mask):
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, x):
        return self.mask(self.network, x)


@pytest.fixture(scope="module")
def digits():
    test = load_digits().test
    return torch.tensor(test.images[:200]), torch.tensor(test.labels[:200])


@pytest.fixture(scope="module")
def trained():
    """Adversarially trained on the digits for four epochs."""
    data = load_digits().train
    x, y = torch.tensor(data.images), torch.tensor(data.labels)
    model, generator = SmallCNN(widths=(8, 16, 16)), torch.Generator().manual_seed(0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(4):
        for rows in torch.randperm(len(x), generator=generator).split(100):
            attacked = pgd(model.eval(), x[rows], y[rows], eps=EPS, steps=3, step_size=EPS / 2, generator=generator)
            model.train()
            optimiser.zero_grad()
            cross_entropy(model(attacked), y[rows]).backward()
            optimiser.step()
    return model.eval()


def failed(model, digits) -> dict[str, Check]:
    return {check.name: check for check in sanity_checks(model, *digits, eps=EPS) if not check.passed}


def test_an_adversarially_trained_network_passes_every_check(trained, digits):
    checks = sanity_checks(trained, *digits, eps=EPS)
    assert [check.name for check in checks if not check.passed] == []
    assert [check.name for check in checks] == [
        *("gradients exist", "loss rises", "more steps", "larger eps", "doubled eps"),
        *("unbounded eps", "random noise", "black box"),
    ]
    assert all(check.meaning for check in checks)


@pytest.mark.parametrize("levels", [16, 256])
def test_rounded_pixels_are_caught(trained, digits, levels):
    """8-bit (and coarser) rounding has gradient 0 everywhere; PGD leaves the accuracy, Square does not."""
    found = failed(Masked(trained, lambda network, x: network((x * (levels - 1)).round() / (levels - 1))), digits)
    assert {"gradients exist", "loss rises", "unbounded eps", "black box"} <= found.keys()
    assert found["gradients exist"].found["images_without_gradient"] == 1.0
    assert found["black box"].found["accuracy_after_square"] < found["black box"].found["accuracy_after_white box"]
    assert "masking" in found["black box"].meaning


def test_a_saturated_temperature_is_caught(trained, digits):
    """The softmax underflows, so the cross-entropy has no gradient; the margin of the white box still has one."""
    found = failed(Masked(trained, lambda network, x: network(x) * 1e3), digits)
    assert {"gradients exist", "unbounded eps"} <= found.keys()
    assert "black box" not in found
    assert 0.5 < found["gradients exist"].found["images_without_gradient"] < 1


def test_gradients_of_the_wrong_sign_are_caught(trained, digits):
    """The forward pass is untouched, the backward pass negated: gradients exist, and lead away."""
    found = failed(Masked(trained, lambda network, x: network(2 * x.detach() - x)), digits)
    assert {"loss rises", "unbounded eps", "random noise", "black box"} <= found.keys()
    assert "gradients exist" not in found


def test_shattered_gradients_are_caught(trained, digits):
    found = failed(Masked(trained, lambda network, x: network(x + 0.1 * torch.sin(200 * x))), digits)
    assert "more steps" in found


def test_an_attack_that_walks_past_the_maximum_and_back_is_caught():
    """All images are grey. A step takes the mean past the worst place at 3/4 of a step, the next step takes it back."""
    step = 2.5 * EPS / 10

    def kinked(x):
        score = 100 * (x.mean((1, 2, 3)) - 0.5 - 0.75 * step).abs()
        return torch.stack([score, torch.zeros_like(score)], dim=1)

    images, labels = torch.full((20, 1, 4, 4), 0.5), torch.zeros(20, dtype=torch.int64)
    found = failed(kinked, (images, labels))["loss rises"].found
    assert found["rise"] > 0
    assert found["largest_drop"] == pytest.approx(found["rise"])


def test_a_network_without_autograd_is_reported_and_not_a_crash(trained, digits):
    assert "gradients exist" in failed(Masked(trained, lambda network, x: network(x.detach())), digits)


def test_checks_are_json_and_repeatable_and_leave_the_global_generator_alone(trained, digits):
    budget = SanityBudget(steps=3, longer=2, queries=10, noise=3)
    state = torch.get_rng_state()
    first, second = (
        [check.to_json() for check in sanity_checks(trained, *digits, eps=EPS, seed=1, budget=budget)] for _ in range(2)
    )
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert all(math.isfinite(value) for check in first for value in check["found"].values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x, y: sensitivity(m, x, y, eps=0.0), "eps and length above 0"),
        (lambda m, x, y: sensitivity(m, x[:0], y[:0], eps=0.1), "found 0 images"),
        (lambda m, x, y: sensitivity(m, x, y, eps=0.1, steps=1), "at least 2 steps"),
        (lambda m, x, y: sanity_checks(m, x, y, eps=0.5), "below 0.5"),
        (lambda m, x, y: sanity_checks(m, x, y, eps=0.1, budget=SanityBudget(longer=1)), "compares nothing"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    weight, images, labels = case()
    with pytest.raises(RecipeError, match=message):
        call(linear(weight), images, labels)
