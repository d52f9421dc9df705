from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.planted_defences import BUDGET, DATA, EPS, detached, honest, rounding

from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.checks.binarisation import _readout, binarisation, binarisation_check

TASK = Task(DATA, EPS, 0.0, 0, 3, BUDGET)


def noted(*ways):
    """Of each way of the gradient: planted, found, and, where any was, found at random."""
    counts = zip(*((*way, 0)[:3] for way in ways), strict=True)
    return dict(zip(("planted", "found", "found_at_random"), map(list, counts), strict=True))


def test_the_planted_image_is_found_where_features_are_linear_and_never_by_chance():
    found = binarisation(honest(), TASK, 12)
    assert found.notes == noted((12, 12))
    assert np.abs(found.images.astype(np.float64) - DATA.images).max() <= EPS + 1e-6
    np.testing.assert_array_equal(found.images[12:], DATA.images[12:])


@pytest.mark.parametrize("make", [detached, lambda: rounding(255)])
def test_the_planted_image_is_not_found_where_no_gradient_leads_to_it(make):
    assert binarisation(make(), TASK, 12).notes == noted((12, 0))


def test_it_is_the_exact_path_that_is_tested():
    """A path that leaves the masking step out would find everything and say nothing of the attack."""
    asked = set()
    target = honest()

    def features(images, path):
        asked.add(path)
        return target.features[0](images, path)

    binarisation(replace(target, features=(features,)), TASK, 4)
    assert asked == {"exact"}


def test_the_readout_separates_the_first_row_and_begins_half_way_to_it():
    rows = np.random.default_rng(0).normal(size=(60, 32))
    rows[0] *= 2
    weights, offset = _readout(rows)
    scores = rows @ weights + offset
    assert scores[0] == pytest.approx(0.5, abs=1e-4)
    assert scores[1:].max() == pytest.approx(-0.5, abs=1e-4)


def test_what_no_readout_can_separate_is_not_planted():
    rows = np.random.default_rng(0).normal(size=(60, 2))
    rows[0] = rows[1:].mean(0)
    assert _readout(rows) is None
    assert _readout(np.ones((60, 4))) is None


def test_features_that_do_not_depend_on_the_image_leave_nothing_to_judge():
    blind = replace(honest(), features=(lambda images, path: torch.ones(len(images), 8),))  # noqa: ARG005
    notes = binarisation(blind, TASK, 4).notes
    assert notes == noted((0, 0))
    assert binarisation_check(notes).passed is None


def test_without_features_it_is_not_judged():
    notes = binarisation(replace(honest(), features=()), TASK, 4).notes
    check = binarisation_check(notes)
    assert (check.passed, check.found) == (None, {})
    assert "no hidden features" in check.meaning
    assert "not run" in binarisation_check(None).meaning


def test_it_is_reproduced_by_the_seed():
    first, again, other = (binarisation(honest(), replace(TASK, seed=seed), 5).images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("planted", "found", "at_random", "passed"),
    [
        (30, 30, 0, True),
        (30, 25, 0, True),  # P(25 or fewer of 30 at .95) = .016
        (30, 24, 0, False),  # .0033
        (30, 0, 0, False),
        (9, 0, 0, None),  # too few to say anything
        (30, 30, 16, None),  # found at random, too: no task
        (30, 30, 15, True),
    ],
)
def test_significantly_fewer_than_nineteen_of_twenty_fail(planted, found, at_random, passed):
    check = binarisation_check(noted((planted, found, at_random)))
    assert check.passed is passed
    assert check.masking


def test_a_way_without_a_gradient_is_not_hidden_by_another_that_has_one():
    """Side by side the planted images are found by the features past the step that detaches; each way has its own."""
    (past,), (behind,) = honest().features, detached().features
    both = replace(honest(), features=(behind, past))
    notes = binarisation(both, TASK, 12).notes
    assert notes == noted((12, 0), (12, 12))
    assert binarisation_check(notes).passed is False
    joined = replace(both, features=(lambda *given: torch.cat([behind(*given), past(*given)], dim=1),))
    assert binarisation_check(binarisation(joined, TASK, 12).notes).passed


@pytest.mark.parametrize(
    ("other", "passed"),
    [((30, 30), True), ((30, 24), False), ((9, 9), None)],  # .0033 is below .01 / 2, too
)
def test_the_worst_of_two_ways_counts(other, passed):
    for notes in (noted((30, 30), other), noted(other, (30, 30))):
        check = binarisation_check(notes)
        assert check.passed is passed
        assert check.found["found"] == other[1]
    assert binarisation_check(noted((9, 9), (30, 0))).passed is False
