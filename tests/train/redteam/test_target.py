"""What an attacker sees of a file is what the file does."""

import numpy as np
import pytest
import torch

from s2ap_defend.classifier import DefendedClassifier
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.redteam.target import open_targets


@pytest.fixture(scope="module")
def targets(tiny_model_path):
    return open_targets(tiny_model_path)


@pytest.fixture(scope="module")
def served(tiny_model_path, random_images):
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images)


def test_the_view_of_the_file_says_what_the_file_says(targets, served, random_images):
    defended, _ = targets
    with torch.no_grad():
        c, m = defended.view(torch.from_numpy(random_images), "exact", None)
    np.testing.assert_allclose(c.exp().numpy(), served.probabilities, atol=1e-5)
    assert m.shape == (defended.members, *c.shape)
    assert (defended.members, defended.purifies, defended.path, defended.test.members) == (6, True, "exact", 6)


def test_the_bare_target_is_the_classifier_on_the_image_as_it_is(targets, random_images):
    _, bare = targets
    x, labels = torch.from_numpy(random_images), np.zeros(len(random_images), dtype=np.int64)
    with torch.no_grad():
        c, m = bare.view(x, "exact", None)
    assert m is None
    np.testing.assert_array_equal(bare.system(random_images, labels).label, c.argmax(1).numpy())
    assert torch.equal(c, bare.classify(x))
    assert (bare.members, bare.purifies, bare.path, bare.test) == (0, False, "none", None)


def test_hidden_features_are_those_of_the_classifier_behind_the_purifier_and_of_the_jurors_past_it(
    targets, random_images
):
    """The answer is a mix and all three jurors see the image as it came."""
    defended, bare = targets
    x = torch.from_numpy(random_images[:8])
    of_image = bare.features[0](x, "exact")

    def features(path):
        return [way(x, path) for way in defended.features]

    classifier, jurors = features("exact")
    past, same = features("none")
    assert torch.equal(past, of_image)
    assert not torch.allclose(classifier, of_image)
    assert torch.equal(jurors, same)
    assert jurors.shape == (8, 3 * of_image.shape[1])
    for path in ("straight_through", "identity"):
        torch.testing.assert_close(features(path), [classifier, jurors], rtol=0, atol=1e-4)


def test_hidden_features_lead_gradients_back_through_the_purifier(targets, random_images):
    behind = targets[0].features[0]
    gradients = []
    for path in ("exact", "none"):
        x = torch.from_numpy(random_images[:4]).requires_grad_()
        gradients.append(torch.autograd.grad(behind(x, path).sum(), x)[0])
    assert gradients[0].flatten(1).abs().amax(1).min() > 0
    assert not torch.allclose(*gradients)


def test_a_file_has_no_j_free_form_of_its_purifier(targets, random_images):
    with pytest.raises(ValueError, match="holds no J-free form of its purifier; attack it by another path"):
        targets[0].features[0](torch.from_numpy(random_images[:1]), "surrogate")


def test_the_plan_fits_what_is_attacked(targets):
    defended, bare = ({one.objective.name for one in target.plan(AdaptiveBudget.standard())} for target in targets)
    assert {"agreement", "evidence x1", "agreement of 2"} <= defended, "two members are asked before an early 'clean'"
    assert bare == {"classifier cross_entropy", "classifier dlr", "classifier margin", "targeted agreement"}
