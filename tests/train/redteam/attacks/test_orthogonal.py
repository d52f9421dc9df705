"""Orthogonal projected gradient descent: its steps, and what it reaches on defences of linear networks."""

import math

import numpy as np
import pytest
import torch
from tests.train.linear_defence import (
    BUDGET,
    FIRST,
    REACH,
    SECOND,
    agreement_test,
    defence,
    images_with,
    linear,
    run,
    task,
    won,
)

from s2ap_train.redteam.attacks.white_box_orthogonal import step_direction

SHAPE = (50, 1, 4, 4)


def drawn(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))


@pytest.mark.parametrize(
    ("orthogonal", "fooled", "serves", "leaves"),
    [("classifier", False, 0, 1), ("detector", True, 1, 0)],
)
def test_a_step_serves_one_and_leaves_the_other(orthogonal, fooled, serves, leaves):
    gradients = (drawn(0), 1e-4 * drawn(1))
    step = step_direction(*gradients, torch.full((50,), fooled), orthogonal)
    assert cosine(step, gradients[leaves]).abs().max() < 1e-6
    assert (cosine(step, gradients[serves]) > 0.5).all()  # of 16 dimensions one is lost
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((50,), 4.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("orthogonal", "fooled", "serves"),
    [("classifier", True, 1), ("detector", False, 0), ("neither", True, 1), ("neither", False, 0)],
)
def test_the_other_step_is_taken_whole(orthogonal, fooled, serves):
    gradients = (drawn(0), 1e-4 * drawn(1))
    step = step_direction(*gradients, torch.full((50,), fooled), orthogonal)
    torch.testing.assert_close(cosine(step, gradients[serves]), torch.ones(50, dtype=torch.float64))


def test_parallel_gradients_are_taken_whole_and_no_gradient_is_no_step():
    gradient, nothing = drawn(0), torch.zeros(SHAPE, dtype=torch.float64)
    whole = step_direction(gradient, -3 * gradient, torch.zeros(50, dtype=torch.bool), "classifier")
    torch.testing.assert_close(cosine(whole, gradient), torch.ones(50, dtype=torch.float64))
    assert not step_direction(nothing, gradient, torch.zeros(50, dtype=torch.bool), "classifier").any()
    alone = step_direction(gradient, nothing, torch.zeros(50, dtype=torch.bool), "classifier")
    torch.testing.assert_close(cosine(alone, gradient), torch.ones(50, dtype=torch.float64))


def test_every_sample_is_served_by_what_it_lacks():
    gradients, fooled = (drawn(0), drawn(1)), torch.arange(50) % 2 == 0
    step = step_direction(*gradients, fooled, "neither")
    torch.testing.assert_close(cosine(step, gradients[0])[~fooled], torch.ones(25, dtype=torch.float64))
    torch.testing.assert_close(cosine(step, gradients[1])[fooled], torch.ones(25, dtype=torch.float64))


# The classifier moves with the first half of the pixels, the member with both: an attack that follows the classifier
# alone leaves the second half as it is, and the member objects.
ACCEPTS = agreement_test(1, lower=[-1.0], upper=[1.0], undecided_abstains=True)
DEFENCE = defence(linear(FIRST), (linear(SECOND + 0.5 * FIRST),), ACCEPTS)
MARGINS = np.array([(0.5, 0.5), (0.8, 0.8), (0.9, 0.2), (1.1, 0.1), (0.2, 1.7)]) * REACH
DATA = images_with(*[(m0, m1 - 0.5 * m0) for m0, m1 in MARGINS])
WITHIN = (MARGINS[:, 0] < REACH) & (MARGINS[:, 1] < 1.5 * REACH)


@pytest.mark.parametrize("name", ["orthogonal-classifier", "orthogonal-detector"])
def test_both_forms_break_what_can_be_broken_and_nothing_else(name):
    assert WITHIN.tolist() == [True, True, True, False, False]
    assert won(name, DEFENCE, task(DATA)).tolist() == WITHIN.tolist()


def test_the_classifier_alone_is_not_enough_on_this_defence():
    assert not won("apgd-ce", DEFENCE, task(DATA))[1]


def test_restarts_alternate_with_the_selective_form():
    budget = type(BUDGET)(steps=2, cheap_steps=2, restarts=6, targets=1)
    notes = run("orthogonal-detector", DEFENCE, task(DATA, budget=budget)).notes
    assert set(notes["broken_by"]) == {"clean image", "orthogonal detector", "selective"}
    assert notes["restarts"] == 2


@pytest.mark.parametrize(("thorough", "forms"), [(True, {"orthogonal classifier", "selective"}), (False, None)])
def test_a_thorough_budget_runs_the_selective_form_although_it_has_one_restart(thorough, forms):
    budget = type(BUDGET)(steps=2, cheap_steps=2, restarts=1, targets=1, thorough=thorough)
    notes = run("orthogonal-classifier", DEFENCE, task(DATA, budget=budget)).notes
    assert set(notes["broken_by"]) == {"clean image"} | (forms or {"orthogonal classifier"})
    assert notes["restarts"] == (2 if thorough else 1)


def test_steps_have_the_length_that_moves_a_pixel_by_one_on_average():
    step = step_direction(drawn(0), drawn(1), torch.zeros(50, dtype=torch.bool), "neither")
    assert math.isclose(float(step[0].square().mean()), 1.0, rel_tol=1e-9)
