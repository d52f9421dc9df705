import numpy as np
import pytest
import torch

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import ModelFileError
from s2ap_defend.model_file import open_model_file
from s2ap_train.twin import Twin


@pytest.fixture(scope="module")
def twin(tiny_model_path):
    return Twin.from_file(open_model_file(tiny_model_path))


@pytest.fixture(scope="module")
def served(tiny_model_path, random_images):
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images)


def test_the_purified_image_is_that_of_the_file(twin, served, random_images):
    with torch.no_grad():
        purified = twin.purify(torch.from_numpy(random_images))
    np.testing.assert_allclose(purified.numpy(), served.purified, atol=1e-5)


def test_the_classifier_is_that_of_the_file(twin, served):
    with torch.no_grad():
        probabilities = twin.classify(torch.from_numpy(served.purified)).exp()
    np.testing.assert_allclose(probabilities.numpy(), served.probabilities, atol=1e-5)


def test_labels_flags_and_members_used_are_those_of_the_file(twin, served, random_images):
    # Within rounding of a bin edge, a boundary or a tie either may be right: at most one image in a hundred.
    outcome = twin.verdicts(random_images)
    for name in ("label", "adversarial", "members_used"):
        same = getattr(outcome, name) == getattr(served, name)
        assert same.mean() >= 0.99, name
    assert served.adversarial.any()
    assert not served.adversarial.all()


def test_log_likelihood_ratios_are_those_of_the_file(twin, served, random_images):
    difference = np.abs(twin.verdicts(random_images).log_likelihood_ratio - served.log_likelihood_ratio)
    assert (difference < 1e-12).mean() >= 0.99


def test_every_gradient_path_has_the_same_value(twin, random_images):
    x = torch.from_numpy(random_images[:8])
    exact = twin.purify(x)
    for path in ("straight_through", "identity"):
        torch.testing.assert_close(twin.purify(x, path), exact, rtol=0, atol=1e-6)


def test_the_identity_path_has_the_gradient_of_no_purifier(twin, random_images):
    x = torch.from_numpy(random_images[:2]).requires_grad_()
    (gradient,) = torch.autograd.grad(twin.purify(x, "identity").sum(), x)
    assert torch.all(gradient == 1.0)


def test_the_exact_gradient_is_the_slope_of_the_purifier(tiny_model_path):
    # Central differences in float64 along random directions, inside the box so that no clamp is active.
    twin = Twin.from_file(open_model_file(tiny_model_path), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand((2, 1, 8, 8), generator=generator, dtype=torch.float64)
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    variable = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((twin.purify(variable) * weights).sum(), variable)
    h = 1e-5
    with torch.no_grad():
        slope = ((twin.purify(x + h * direction) - twin.purify(x - h * direction)) * weights).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_fewer_members_are_the_first_ones(twin, random_images):
    x = torch.from_numpy(random_images[:4])
    assert twin.members(x).shape == (6, 4, 10)
    torch.testing.assert_close(twin.members(x, 2), twin.members(x)[:2], rtol=0, atol=0)


def test_gradients_reach_the_image_through_purifier_classifier_and_members(twin, random_images):
    x = torch.from_numpy(random_images[:2]).requires_grad_()
    purified = twin.purify(x)
    for value in (twin.classify(purified)[:, 0], *twin.members(purified)[:, :, 0]):
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
        assert gradient.abs().flatten(1).amax(1).min() > 0.0


def test_a_file_without_a_stage_has_no_twin(tiny_model_path):
    file = open_model_file(tiny_model_path)
    for node in file.proto.graph.node:
        node.name = node.name.removeprefix("purifier/")
    with pytest.raises(ModelFileError, match="no stage 'purifier'"):
        Twin.from_file(file)
