import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.train.planted_defences import (
    BUDGET,
    DATA,
    EPS,
    MARGINS,
    REACH,
    FlagsAll,
    detached,
    honest,
    images_with_margins,
)

from s2ap_defend.errors import RecipeError
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.checks.checks import probes_of
from s2ap_train.redteam.checks.curves import curve_probes, curves, eps_grid
from s2ap_train.redteam.probes import Probe, Probed, at_radius, gradients, judge_probes, of_other_classes, with_restart

TASK = Task(DATA, EPS, 0.0, 0, 5, BUDGET)


def distance(images):
    return np.abs(images.astype(np.float64) - DATA.images).max()


def test_the_radius_curve_of_a_linear_defence_is_the_share_of_margins_out_of_reach():
    """Grey images: no pixel meets 0 or 1 up to eps .3, and at eps 1 every margin is reached."""
    target, radii = honest(), (EPS / 4, EPS, 2 * EPS, 1.0)
    probes = [Probe("eps", at, at_radius) for at in radii]
    found = {probe.name: probe(target, TASK) for probe in probes}
    clean = target.system(DATA.images, DATA.labels)
    curve = curves(clean, DATA.labels, judge_probes(target.system, DATA, probes, found))
    assert [point.at for point in curve.eps] == [0.0, *radii]
    expected = [1.0, *(float((REACH * at < MARGINS * EPS).mean()) for at in radii[:-1]), 0.0]
    assert [point.robust_accuracy for point in curve.eps] == pytest.approx(expected)
    assert [point.label_accuracy for point in curve.eps] == pytest.approx(expected)
    assert all(low <= point.robust_accuracy <= high for point in curve.eps for low, high in [point.interval])
    assert (curve.samples, curve.steps, curve.restarts) == (len(DATA), (), ())


def test_probes_stay_inside_their_radius_and_the_unit_box():
    images = at_radius(honest(), TASK, 0.3).images
    assert 0.29 < distance(images) <= 0.3 + 1e-6
    assert images.min() >= 0.0
    assert images.max() <= 1.0
    assert images.dtype == np.float32


def test_a_curve_counts_what_was_found_at_smaller_radii_and_by_other_attacks():
    def probed(at, *broken):
        return Probed(Probe("eps", at, at_radius), np.array(broken), ~np.array(broken))

    clean = honest().system(DATA.images[:3], DATA.labels[:3])
    points = [probed(0.2, False, True, False), probed(0.1, True, False, False)]
    assert [point.robust_accuracy for point in curves(clean, DATA.labels[:3], points).eps] == pytest.approx(
        [1, 2 / 3, 1 / 3]
    )
    won = replace(clean, score=np.array([1.0, 1.0, -1.0]))
    joined = curves(clean, DATA.labels[:3], points, found=[(0.1, won)]).eps
    assert [point.robust_accuracy for point in joined] == pytest.approx([1, 1 / 3, 0])


def test_an_attacker_without_bounds_hands_in_an_image_of_another_class_that_is_answered():
    """Only one image of class 1 is answered; whoever attacks class 0 has to find it, wherever it is drawn."""

    class AnswersOne(FlagsAll):
        def __call__(self, images, labels):
            outcome = super().__call__(images, labels)
            answered = np.array([np.array_equal(image, DATA.images[31]) for image in images])
            return replace(
                outcome,
                flagged=~answered,
                score=np.where(answered & (outcome.label != labels), -1.0, np.abs(outcome.score)),
            )

    target = honest()
    target = replace(target, system=AnswersOne(target.system))
    found = of_other_classes(target, TASK, 1.0)
    won = target.system(found.images, DATA.labels).success
    np.testing.assert_array_equal(won, DATA.labels == 0)


def test_images_of_other_classes_are_moved_into_the_ball():
    near = of_other_classes(honest(), TASK, 0.05).images
    assert 0.0 < distance(near) <= 0.05 + 1e-6


def test_one_class_alone_leaves_the_unbounded_attacker_with_what_there_is():
    data = replace(DATA, images=DATA.images[::2], labels=DATA.labels[::2])
    images = of_other_classes(honest(), replace(TASK, data=data), 1.0).images
    np.testing.assert_array_equal(images, data.images)


def test_restarts_begin_elsewhere_and_are_reproduced_by_their_number():
    """Through a gradient of 0 the best of the random start is all that is left of an attack."""
    target = detached()
    wide = replace(TASK, eps=0.4)
    first, again, other = (with_restart(target, wide, number).images for number in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_gradients_are_counted_for_the_classifier_and_for_each_member():
    """The second member does not read the image; the first does, and so does the classifier."""
    target = honest()

    def view(images, path, members):
        c, _ = target.view(images, path, members)
        blind = c.detach() + 0 * images.flatten(1).sum(1, keepdim=True)
        return c, torch.stack([c, blind])

    notes = gradients(replace(target, view=view, members=2), TASK, 12).notes
    assert notes == {"images": 12, "without": 0, "members_without": [0, 12], "lent": False}
    assert gradients(detached(), TASK, 7).notes == {"images": 7, "without": 7, "members_without": [], "lent": False}


@pytest.mark.parametrize("eps", [0.0, -0.1, 1.5])
def test_there_is_no_curve_around_zero_or_beyond_the_box(eps):
    with pytest.raises(RecipeError, match="above 0, at most 1 pixel"):
        eps_grid(eps)


def test_the_grid_ascends_through_eps_to_the_whole_box():
    assert eps_grid(0.15) == (0.075, 0.1125, 0.15, 0.225, 0.3, 0.45, 0.6, 0.9, 1.0)
    assert eps_grid(1.0) == (0.5, 0.75, 1.0)
    assert eps_grid(0.15, quick=True) == (0.075, 0.3, 1.0)


def test_probes_travel_to_other_processes_and_have_one_name_each():
    for quick in (True, False):
        probes = probes_of(EPS, BUDGET, quick=quick)
        assert len({probe.name for probe in probes}) == len(probes)
        assert pickle.loads(pickle.dumps(probes)) == probes  # noqa: S301 - made here
    assert {probe.kind for probe in curve_probes(EPS, BUDGET, quick=True)} == {"eps", "steps", "other classes"}


def test_images_with_margins_have_them():
    data = images_with_margins(0.5, 1.0)
    assert honest().system(data.images, data.labels).score == pytest.approx([0.5, 1.0], abs=1e-5)
