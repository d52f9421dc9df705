"""Chains made of a file's stages, and networks next to it, as they are attacked."""

import numpy as np
import pytest
import torch
from tests.export.defended_files import DECISION, KEEPING_TABLES, PURIFICATION, TABLES, write_untrained
from tests.train.linear_stage import WEIGHT, linear_stage

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.model_file import open_model_file
from s2ap_defend.sequential import run_sequential_test
from s2ap_defend.stages import CLASSIFIER, cut_stage, member_scope
from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.search import adaptive_attack
from s2ap_train.adaptive.systems import judge
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet
from s2ap_train.redteam.ablation.chains import Chain, OpenedFile, chain_target, corrections, jury_test, network_target
from s2ap_train.redteam.ablation.names import FULL, JURY, UNFLAGGED, UNPURIFIED

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
def said(opened, random_images):
    """What every stage says of the images."""
    return opened.engines.ask(random_images)


def test_the_jury_alone_gives_the_label_with_the_largest_weight_of_votes_and_never_flags(
    opened, file, said, random_images
):
    outcome = chain_target(JURY, opened).system(random_images, LABELS)
    weights = np.array([member.vote_weight for member in file.manifest.members])
    votes = np.zeros((len(random_images), 10))
    for weight, labels in zip(weights, said.members.argmax(-1), strict=True):
        votes[np.arange(len(votes)), labels] += weight
    first, second = np.sort(votes, axis=1)[:, :-3:-1].T
    clear = first > second
    assert clear.sum() > 128
    np.testing.assert_array_equal(outcome.label[clear], votes.argmax(1)[clear])
    assert not outcome.flagged.any()
    assert not outcome.abstained.any()
    assert set(outcome.members_used) == {int((weights > 0).sum())}
    np.testing.assert_array_equal(outcome.success, outcome.label != LABELS)


def test_a_file_that_never_flags_answers_as_it_does_where_nothing_is_flagged(opened, served, random_images):
    outcome = chain_target(UNFLAGGED, opened).system(random_images, LABELS)
    assert not outcome.flagged.any()
    kept = ~served.adversarial
    np.testing.assert_array_equal(outcome.label[kept], served.label[kept])
    np.testing.assert_array_equal(outcome.members_used[kept], served.members_used[kept])
    np.testing.assert_array_equal(outcome.success, outcome.label != LABELS)


def test_without_the_purifier_every_stage_sees_the_image_as_it_came(opened, file, served, random_images):
    outcome = chain_target(UNPURIFIED, opened).system(random_images, LABELS)
    members = [cut_stage(file.proto, member_scope(i)) for i in range(len(file.manifest.members))]
    raw = StageEngines(None, cut_stage(file.proto, CLASSIFIER), members, threads=1).ask(random_images)
    expected = run_sequential_test(file.manifest.to_test(), raw)
    np.testing.assert_array_equal(outcome.flagged, expected.adversarial)
    np.testing.assert_array_equal(outcome.label, expected.label)
    assert (outcome.flagged != served.adversarial).any(), "behind the purifier other images are flagged"


def test_the_whole_chain_is_the_served_file(opened, file, served, random_images):
    expected = judge(served, LABELS, file.manifest.to_test())
    outcome = chain_target(FULL["correct"], opened).system(random_images, LABELS)
    for name in ("label", "flagged", "abstained", "members_used"):
        np.testing.assert_array_equal(getattr(outcome, name), getattr(expected, name), err_msg=name)
    np.testing.assert_allclose(outcome.score, expected.score, rtol=1e-5)


@pytest.fixture(scope="module")
def suspicious(tmp_path_factory):
    """The tiny file where only what the opening does not accept is purified."""
    path = tmp_path_factory.mktemp("suspicious") / "suspicious.onnx"
    accepting = TABLES.model_copy(update={"lower": (-1.25,) * 6})
    write_untrained(path, accepting, DECISION.model_copy(update={"purify": "suspicious"}), PURIFICATION)
    return path


def test_the_whole_chain_is_the_served_file_where_only_what_is_suspicious_is_purified(suspicious, random_images):
    file = open_model_file(suspicious)
    served = DefendedClassifier.load(suspicious, device="cpu", threads=1)(random_images)
    untouched = (served.purified == random_images).all((1, 2, 3))
    assert min(untouched.sum(), (~untouched).sum()) > 10
    opened = OpenedFile.of(file)
    expected = judge(served, LABELS, file.manifest.to_test())
    outcome = chain_target(FULL["correct"], opened).system(random_images, LABELS)
    for name in ("label", "flagged", "abstained", "members_used"):
        np.testing.assert_array_equal(getattr(outcome, name), getattr(expected, name), err_msg=name)
    for name in ("score", "margin", "evidence"):
        np.testing.assert_allclose(getattr(outcome, name), getattr(expected, name), rtol=1e-6, atol=1e-5, err_msg=name)


def test_what_is_accepted_as_it_came_costs_no_purifier(suspicious, random_images):
    opened = OpenedFile.of(open_model_file(suspicious))
    target = chain_target(FULL["correct"], opened)
    served = DefendedClassifier.load(suspicious, device="cpu", threads=1)(random_images)
    untouched = (served.purified == random_images).all((1, 2, 3))
    purifier = opened.engines.alone(random_images).purifier
    assert purifier > 10 * opened.engines.alone(random_images).classifier
    accepted, others = (target.system.milliseconds(random_images[rows]) for rows in (untouched, ~untouched))
    assert accepted < purifier / 2 < others


def test_rejecting_changes_no_success_of_the_attacker_and_answers_nothing_that_is_flagged(
    opened, file, served, random_images
):
    outcome = chain_target(FULL["reject"], opened).system(random_images, LABELS)
    np.testing.assert_array_equal(outcome.success, judge(served, LABELS, file.manifest.to_test()).success)
    np.testing.assert_array_equal(outcome.abstained, served.adversarial)
    assert not outcome.right(np.where(served.adversarial, outcome.label, LABELS))[served.adversarial].any()


def test_a_file_that_keeps_its_answer_is_right_where_it_would_be_if_it_never_flagged(tmp_path, random_images):
    path = tmp_path / "keeps.onnx"
    write_untrained(path, KEEPING_TABLES, DECISION, PURIFICATION)
    opened = OpenedFile.of(open_model_file(path))
    assert corrections(opened.file.manifest.to_test()) == {one: FULL[one] for one in ("reject", "keep")}
    kept, unflagged = (chain_target(name, opened).system(random_images, LABELS) for name in (FULL["keep"], UNFLAGGED))
    assert 0 < kept.flagged.sum() < len(LABELS)
    stayed = ~kept.flagged
    np.testing.assert_array_equal(kept.label[stayed], unflagged.label[stayed])
    served = DefendedClassifier.load(path, device="cpu", threads=1)(random_images)
    np.testing.assert_array_equal(kept.label, served.label)


@pytest.mark.parametrize("name", [JURY, UNFLAGGED, UNPURIFIED, FULL["reject"]])
def test_who_attacks_a_chain_sees_that_chain(opened, file, random_images, name):
    target, x = chain_target(name, opened), torch.from_numpy(random_images)
    chain = Chain.of(name, file.manifest)
    said = chain.engines(opened).ask(random_images)
    with torch.no_grad():
        c, m = target.view(x, "exact", None)
    assert len(m) == target.members == len(said.members) == len(chain.members)
    if target.purifies or name != JURY:
        assert (c.argmax(1).numpy() == said.classifier.argmax(1)).mean() > 0.99, "but for near-ties"
    assert (m.argmax(2).numpy() == said.members.argmax(2)).mean() > 0.99
    assert torch.equal(target.view(x, "exact", 1)[1], m[:1])
    for descent in target.plan(AdaptiveBudget.standard()):
        assert target.view(x[:1], descent.path, descent.objective.members)[0].shape == (1, 10)


def test_the_test_of_a_jury_asks_its_jurors_and_nobody_else(file):
    test = file.manifest.to_test()
    places = np.flatnonzero(test.vote_weights)
    jury = jury_test(test, places)
    assert (jury.members, jury.opening, jury.waves) == (len(places), len(places), (len(places),))
    np.testing.assert_array_equal(jury.vote_weights, test.vote_weights[places])
    assert np.isinf(jury.upper).all()


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
        target.features[0](torch.from_numpy(images), "exact"),
        images.reshape(40, 16),
        err_msg="what the last layer reads",
    )
