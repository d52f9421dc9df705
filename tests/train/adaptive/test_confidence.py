"""The baseline that flags its least confident answers, on a linear network of which it is known what can be had."""

import numpy as np
import pytest
import torch
from tests.train.linear_defence import BUDGET, EPS, FIRST, REACH, images_with, linear

from s2ap_train.adaptive.confidence import ConfidenceSystem, confidence_objective, confidence_plan, sure_objective
from s2ap_train.adaptive.search import adaptive_attack
from s2ap_train.adaptive.systems import RIGHT

NETWORK = linear(FIRST)  # its margin moves by REACH = .4


def log_probabilities(images):
    return NETWORK(torch.from_numpy(images)).numpy()


def seen(images, path, members):
    """The attacker's view of it: a network, and no members."""
    return NETWORK(images), None


def threshold_at(margin):
    """The largest probability of two classes whose margin is so many nats."""
    return float(1.0 / (1.0 + np.exp(-margin)))


def test_it_flags_below_its_threshold_and_the_score_leads_across_the_label_then_above_it():
    system = ConfidenceSystem(log_probabilities, threshold_at(0.1))
    outcome = system(images_with((0.2,), (0.05,), (-0.05,), (-0.2,)).images, np.ones(4, dtype=np.int64))
    assert outcome.flagged.tolist() == [False, True, True, False]
    assert outcome.success.tolist() == [False, False, False, True]
    assert outcome.right(np.ones(4)).tolist() == [True, True, False, False]
    np.testing.assert_allclose(outcome.score[:2], [RIGHT + 0.2, RIGHT + 0.05], atol=1e-5)
    assert 0.0 < outcome.score[2] < 0.1
    np.testing.assert_allclose(outcome.margin, [0.2, 0.05, 0.0, 0.0], atol=1e-6)


def test_a_threshold_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="expected a probability"):
        ConfidenceSystem(log_probabilities, 1.5)


def test_the_attack_for_confidence_breaks_exactly_what_it_can_be_sure_of():
    # A label can be turned below .4, and made .15 sure below .25.
    data = images_with(*[(share * REACH,) for share in (0.3, 0.6, 0.7, 0.95, 1.1)])
    system = ConfidenceSystem(log_probabilities, threshold_at(0.15))
    plan = confidence_plan(threshold_at(0.15), BUDGET)
    found = adaptive_attack(system, seen, plan, data, eps=EPS, budget=BUDGET, seed=0)
    assert system(found.images, data.labels).success.tolist() == [True, True, False, False, False]
    unflagged = ConfidenceSystem(log_probabilities, 0.0)
    found = adaptive_attack(unflagged, seen, confidence_plan(0.0, BUDGET), data, eps=EPS, budget=BUDGET, seed=0)
    assert unflagged(found.images, data.labels).success.tolist() == [True, True, True, True, False]


def test_the_joint_objective_is_zero_where_the_network_is_sure_enough_of_the_target():
    c = torch.tensor([[0.0, 0.5, 3.0]]).log_softmax(1).repeat(2, 1)
    y, t = torch.tensor([0, 0]), torch.tensor([2, 1])
    loss = confidence_objective(0.8).loss(c, None, y, t)
    assert loss[0] == 0.0
    assert loss[1] == pytest.approx(2.5 + 0.05 + np.log(0.8) - float(c[0, 1]) + 0.05, abs=1e-5)
    assert sure_objective().loss(c, None, y, t).tolist() == [-float(c[0, 2])] * 2
