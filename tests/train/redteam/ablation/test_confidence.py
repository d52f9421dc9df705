"""A network that flags its least confident inputs, and the attacker that makes it confident."""

import numpy as np
import pytest
from tests.train.linear_stage import WEIGHT, linear_stage

from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.search import adaptive_attack
from s2ap_train.adaptive.systems import RIGHT
from s2ap_train.data import ImageSet
from s2ap_train.redteam.ablation.chains import network_target
from s2ap_train.redteam.ablation.confidence import threshold_at

BUDGET = AdaptiveBudget(steps=12, cheap_steps=12, restarts=1, targets=1)
IMAGES = np.random.default_rng(2).uniform(0.3, 0.7, (40, 1, 4, 4)).astype(np.float32)
DIFFERENCE = (WEIGHT[:, 0] - WEIGHT[:, 1]).astype(np.float64)
MARGIN = IMAGES.reshape(40, 16).astype(np.float64) @ DIFFERENCE  # of class 0, nats
LABELS = (MARGIN < 0).astype(np.int64)
CONFIDENCE = -np.log1p(np.exp(-np.abs(MARGIN)))


@pytest.mark.parametrize("flagged", [0, 1, 7, 40])
def test_the_threshold_flags_as_many_clean_images_as_the_other_system(flagged):
    threshold = threshold_at(linear_stage(), IMAGES, flagged)
    outcome = network_target("linear", linear_stage(), threshold).system(IMAGES, LABELS)
    assert outcome.flagged.sum() == flagged
    assert set(np.flatnonzero(outcome.flagged)) == set(np.argsort(CONFIDENCE)[:flagged])


def test_what_ties_at_the_threshold_is_flagged():
    twice = np.concatenate([IMAGES[:3], IMAGES[:3]])
    threshold = threshold_at(linear_stage(), twice, 3)
    assert network_target("linear", linear_stage(), threshold).system(twice, np.zeros(6, int)).flagged.sum() == 4


def test_the_attacker_wins_where_the_label_is_wrong_and_sure_enough():
    middle = float(np.median(CONFIDENCE))
    system = network_target("linear", linear_stage(), float(np.exp(middle))).system
    outcome = system(IMAGES, 1 - LABELS)  # all are wrong
    flagged = middle > CONFIDENCE
    np.testing.assert_array_equal(outcome.flagged, flagged)
    np.testing.assert_array_equal(outcome.success, ~flagged)
    np.testing.assert_allclose(outcome.score[flagged], (middle - CONFIDENCE)[flagged], rtol=1e-3)
    right = system(IMAGES, LABELS)
    assert (right.score >= RIGHT).all()
    assert right.right(LABELS).all(), "flagged or not"


def test_a_network_is_broken_just_where_it_can_be_made_wrong_and_sure_enough():
    # inside the box the margin moves by eps times the 1-norm of the difference of the two columns, and no further
    threshold = float(np.exp(np.quantile(CONFIDENCE, 0.2)))
    needed_margin = np.log(threshold / (1 - threshold))  # nats at which the confidence is the threshold
    reach = np.abs(DIFFERENCE).sum()
    eps = float(np.median((np.abs(MARGIN) + needed_margin) / reach))
    target = network_target("linear", linear_stage(), threshold)
    found = adaptive_attack(
        target.system, target.view, target.plan(BUDGET), ImageSet(IMAGES, LABELS), eps=eps, budget=BUDGET, seed=0
    ).images
    broken = target.system(found, LABELS).success
    surplus = eps * reach - np.abs(MARGIN) - needed_margin
    clear = np.abs(surplus) > 1e-3
    np.testing.assert_array_equal(broken[clear], (surplus > 0)[clear])
    assert 0.3 < broken.mean() < 0.7
