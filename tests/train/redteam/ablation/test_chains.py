"""Chains made of a file's stages, and networks beside it, as they are attacked."""

from collections import Counter

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.model_file import open_model_file
from s2ap_defend.sequential import run_sequential_test
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.search import adaptive_attack, bare_plan
from s2ap_train.adaptive.systems import judge
from s2ap_train.calibration.stage_engines import Said
from s2ap_train.data import ImageSet
from s2ap_train.redteam.ablation.chains import (
    OpenedFile,
    chain_target,
    network_target,
    purified_plan,
    soft_count,
    vote_shares,
)
from s2ap_train.twin import Twin

BUDGET = AdaptiveBudget(steps=6, cheap_steps=6, restarts=1, targets=1)
LABELS = np.random.default_rng(3).integers(0, 10, 256)


@pytest.fixture(scope="module")
def file(tiny_model_path):
    return open_model_file(tiny_model_path)


@pytest.fixture(scope="module")
def opened(file):
    return OpenedFile.of(file)


@pytest.fixture(scope="module")
def served(tiny_model_path, random_images):
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images)


@pytest.fixture(scope="module")
def unpurified(file, random_images):
    """(classifier's labels, members' log-probabilities) on the images as they are, from the twin."""
    twin, x = Twin.from_file(file), torch.from_numpy(random_images)
    with torch.no_grad():
        return twin.classify(x).argmax(1).numpy(), twin.members(x).numpy()


def test_the_purifier_alone_gives_the_base_label_of_the_file_and_never_flags(opened, served, random_images):
    outcome = chain_target("purifier only", opened).system(random_images, LABELS)
    np.testing.assert_array_equal(outcome.label, served.base_label)
    np.testing.assert_array_equal(outcome.success, served.base_label != LABELS)
    assert not outcome.flagged.any()
    assert not outcome.members_used.any()


def test_the_detector_alone_asks_about_the_image_as_it_is_and_rejects(opened, file, served, unpurified, random_images):
    outcome = chain_target("detector only", opened).system(random_images, LABELS)
    expected = run_sequential_test(file.manifest.test.to_test(), unpurified[1], unpurified[0])
    np.testing.assert_array_equal(outcome.flagged, expected.adversarial)
    np.testing.assert_array_equal(outcome.abstained, expected.adversarial)
    np.testing.assert_array_equal(outcome.label, unpurified[0])
    np.testing.assert_array_equal(outcome.success, ~expected.adversarial & (unpurified[0] != LABELS))
    assert (outcome.flagged != served.adversarial).any(), "behind the purifier other images are flagged"


def test_a_vote_counts_classifier_and_members_once_each(opened, unpurified, random_images):
    outcome = chain_target("vote only", opened).system(random_images, LABELS)
    ballots = np.vstack([unpurified[0][None], unpurified[1].argmax(-1)])
    clear = 0
    for label, ballot in zip(outcome.label, ballots.T, strict=True):
        (first, most), *others = Counter(ballot.tolist()).most_common(2)
        if not others or others[0][1] < most:
            clear += 1
            assert label == first
    assert clear > 128
    assert set(outcome.members_used) == {6}
    assert not outcome.flagged.any()


def test_ties_of_a_vote_go_to_the_higher_mean_log_probability():
    answers = np.log(np.array([[[0.6, 0.3, 0.1]], [[0.1, 0.8, 0.1]], [[0.2, 0.1, 0.7]], [[0.2, 0.7, 0.1]]]))
    said = Said(np.zeros((1, 1, 1, 1)), answers[0], answers[1:])  # votes 1, 2, 1
    assert vote_shares(said).argmax(1) == 1
    tied = Said(np.zeros((1, 1, 1, 1)), answers[0], answers[1:2])  # one each; the product of class 1 is larger
    assert vote_shares(tied).argmax(1) == 1
    swapped = Said(np.zeros((1, 1, 1, 1)), answers[1], answers[:1])
    assert vote_shares(swapped).argmax(1) == 1


def test_a_member_in_a_near_tie_votes_for_the_base_label():
    base = np.log(np.array([[0.5, 0.4, 0.1]]))
    near, clear = (np.log(np.array([[[0.4, 0.4 * np.exp(gap), 0.2]]])) for gap in (5e-5, 5e-2))
    votes = [np.exp(vote_shares(Said(np.zeros((1, 1, 1, 1)), base, member)))[0, 0] * 3 for member in (near, clear)]
    assert votes[0] > 2, "both votes and what the softmax adds"
    assert 1 < votes[1] < 2


def test_the_whole_chain_is_the_served_file(opened, file, served, random_images):
    expected = judge(served, LABELS, file.manifest.test.to_test())
    outcome = chain_target("full, correct", opened).system(random_images, LABELS)
    for name in ("label", "flagged", "abstained", "members_used"):
        np.testing.assert_array_equal(getattr(outcome, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(outcome.score, expected.score, rtol=1e-5)


def test_rejecting_changes_no_success_of_the_attacker_and_answers_nothing_that_is_flagged(
    opened, file, served, random_images
):
    outcome = chain_target("full, reject", opened).system(random_images, LABELS)
    np.testing.assert_array_equal(outcome.success, judge(served, LABELS, file.manifest.test.to_test()).success)
    np.testing.assert_array_equal(outcome.abstained, served.adversarial)
    assert not outcome.right(np.where(served.adversarial, outcome.label, LABELS))[served.adversarial].any()


@pytest.mark.parametrize("name", ["purifier only", "detector only", "vote only", "full, reject"])
def test_who_attacks_a_chain_sees_that_chain(opened, random_images, name):
    target, x = chain_target(name, opened), torch.from_numpy(random_images)
    assert target.purifies == (name in {"purifier only", "full, reject"})
    with torch.no_grad():
        c, m = target.view(x, "exact", None)
    assert (m is None) == (name == "purifier only")
    base = target.system(random_images, LABELS).base_label
    if name != "vote only":
        assert (c.argmax(1).numpy() == base).mean() > 0.99, "but for near-ties"
    if m is not None:
        assert len(m) == target.members == 6
        assert torch.equal(target.view(x, "exact", 2)[1], m[:2])
    for descent in target.plan(AdaptiveBudget.standard()):
        assert target.view(x[:1], descent.path, descent.objective.members)[0].shape == (1, 10)


def test_a_voter_that_is_lost_by_far_counts_no_more_than_a_vote():
    def answer(*margins):
        return torch.stack([torch.tensor([[margin, 0.0]]).log_softmax(1) for margin in margins])

    y, t, loss = torch.tensor([0]), torch.tensor([1]), soft_count().loss
    lost, held = answer(-50.0, 3.0, 3.0), answer(-3.0, -3.0, 3.0)
    # the mean log-probability calls the first one lost: its mean margin is -44 / 3
    assert loss(lost[0], lost[1:], y, y) == pytest.approx((-50 / 51 + 2 * 3 / 4) / 3)
    assert loss(held[0], held[1:], y, y) == pytest.approx(-3 / 4 / 3)
    assert loss(held[0], held[1:], y, t) == pytest.approx(-3 / 4 / 3), "of two labels the other is the target"
    assert loss(held[0], None, y, y) == pytest.approx(-3 / 4)


def test_a_voter_that_is_sure_keeps_a_slope_beside_others_that_are():
    scores = torch.tensor([[20.0, 0.0]]).repeat(13, 1, 1).requires_grad_()
    said, y = scores.log_softmax(2), torch.tensor([0])
    (gradient,) = torch.autograd.grad(soft_count().loss(said[0], said[1:], y, y).sum(), scores)
    # one of 13 voters, at 20 nats: 1 / 13 / 21^2 = 1.7e-4
    torch.testing.assert_close(gradient[..., 0], torch.full((13, 1), 1 / 13 / 21**2), rtol=1e-4, atol=0.0)


def test_the_purifier_is_attacked_with_every_objective_of_the_bare_row():
    def aims(plan, path):
        return {(one.objective.name, one.target) for one in plan if one.path == path}

    assert aims(bare_plan(BUDGET), "none") <= aims(purified_plan(BUDGET), "exact")


WEIGHT = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)


def linear_stage():
    """A linear classifier of 1x4x4 images, as a stage."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probabilities"], axis=1),
    ]
    declared = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", ["batch", 1, 4, 4]), ("log_probabilities", ["batch", 2]))
    ]
    graph = helper.make_graph(nodes, "linear", declared[:1], declared[1:], [numpy_helper.from_array(WEIGHT, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_network_is_broken_just_where_its_margin_is_smaller_than_eps_times_the_norm_of_its_weights():
    # Pixels stay inside the box, so the margin can fall by eps times the 1-norm of the difference of the two columns.
    images = np.random.default_rng(2).uniform(0.3, 0.7, (40, 1, 4, 4)).astype(np.float32)
    difference = (WEIGHT[:, 0] - WEIGHT[:, 1]).astype(np.float64)
    margin = images.reshape(40, 16).astype(np.float64) @ difference
    data = ImageSet(images, (margin < 0).astype(np.int64))
    needed = np.abs(margin) / np.abs(difference).sum()
    eps = float(np.median(needed))
    target = network_target("linear", linear_stage())
    found = adaptive_attack(
        target.system, target.view, target.plan(BUDGET), data, eps=eps, budget=BUDGET, seed=0
    ).images
    broken = target.system(found, data.labels).success
    clear = np.abs(needed - eps) > 1e-5
    np.testing.assert_array_equal(broken[clear], needed[clear] < eps)
    assert 0.3 < broken.mean() < 0.7
    np.testing.assert_allclose(
        target.features(torch.from_numpy(images), "exact"), images.reshape(40, 16), err_msg="what the last layer reads"
    )
