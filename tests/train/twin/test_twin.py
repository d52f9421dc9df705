import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import ModelProto
from tests.train.twin_ties import TIE, compared, gaps

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import ModelFileError
from s2ap_defend.model_file import open_model_file
from s2ap_train.onnx_graphs.hidden import hidden_stage
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


@pytest.fixture(scope="module")
def thousand_images(twin, random_images):
    """1,024 images in [0, 1]: uniform, noisy grey, and both attacked through purifier, classifier and members."""
    generator = np.random.default_rng(1)
    grey = np.clip(0.5 + generator.normal(0, 0.1, random_images.shape), 0, 1).astype(np.float32)
    attacked = []
    for images in (random_images, grey):
        x = torch.from_numpy(images).requires_grad_()
        classifier, members = twin.answers(x)
        (gradient,) = torch.autograd.grad((members.mean(0) + classifier)[:, 0].sum(), x)
        attacked.append((x + 0.1 * gradient.sign()).clamp(0, 1).detach().numpy())
    return np.concatenate([random_images, grey, *attacked])


def test_labels_flags_and_members_used_are_those_of_the_file_but_for_near_ties(twin, tiny_model_path, thousand_images):
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)
    differ, unexplained = compared(twin, classifier, thousand_images)
    assert len(differ) >= 1000
    assert differ.mean() <= 0.001
    assert not unexplained.any()
    served = classifier(thousand_images)
    assert 0.1 < served.adversarial.mean() < 0.9
    assert len(np.unique(served.members_used)) > 2


def test_few_verdicts_are_near_ties_so_that_they_explain_no_fault(twin, thousand_images):
    used = twin.verdicts(thousand_images).members_used
    assert (gaps(twin, thousand_images, used) < TIE).mean() < 0.05


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


def test_hidden_features_are_what_the_last_layer_reads(tiny_model_path, random_images):
    # SmallCNN(widths 4, 6, 6, 8) on 8x8 images pools after two blocks: 8 channels of 2x2. The last layer makes the
    # logits of them, so a linear map of the features reproduces all differences of log-probabilities.
    file = open_model_file(tiny_model_path)
    twin = Twin.from_file(file, dtype=torch.float64)
    x = torch.from_numpy(random_images).double()
    with torch.no_grad():
        features, answers = twin.features(x), twin.classify(x)
    assert features.shape == (256, 8 * 2 * 2)
    design = torch.cat([features, torch.ones(256, 1, dtype=torch.float64)], dim=1)
    logits = answers - answers.mean(1, keepdim=True)
    fitted = design @ torch.linalg.lstsq(design, logits, driver="gelsd").solution
    torch.testing.assert_close(fitted, logits, rtol=0, atol=1e-5)  # weights of the file are float32
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(twin.features(x).sum(), x)
    assert gradient.flatten(1).abs().amax(1).min() > 0


def test_a_classifier_without_weights_has_no_hidden_features(tiny_stages):
    stage = ModelProto()
    stage.CopyFrom(tiny_stages[1])
    weighted = [node for node in stage.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    for node in weighted:
        stage.graph.node.remove(node)
    with pytest.raises(ModelFileError, match=r"stage classifier has no layer with weights \(Conv, Gemm, MatMul\)"):
        hidden_stage(stage)


def test_without_its_purifier_a_twin_asks_classifier_and_members_about_the_image_itself(twin, random_images):
    x = torch.from_numpy(random_images[:8])
    alone = twin.without_purifier()
    for path in ("exact", "straight_through", "identity"):
        assert torch.equal(alone.purify(x, path), x)
    assert torch.equal(alone.classify(x), twin.classify(x))
    assert not torch.equal(twin.purify(x), x), "the first twin still purifies"


def test_other_tables_change_what_a_twin_decides(twin, random_images):
    never = replace(twin.test, upper=np.full(6, np.inf), final_threshold=np.inf)
    other = copy.copy(twin)
    other.test = never
    assert not other.verdicts(random_images).adversarial.any()
    assert twin.verdicts(random_images).adversarial.any()


def test_a_file_without_a_stage_has_no_twin(tiny_model_path):
    file = open_model_file(tiny_model_path)
    for node in file.proto.graph.node:
        node.name = node.name.removeprefix("purifier/")
    with pytest.raises(ModelFileError, match="no stage 'purifier'"):
        Twin.from_file(file)
