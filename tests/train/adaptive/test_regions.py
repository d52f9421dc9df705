"""Balls that attacked images stay in."""

import numpy as np
import pytest
import torch

from s2ap_train.adaptive.descent import descend
from s2ap_train.adaptive.regions import Ball, Box, ball_around

SHAPE = (40, 1, 4, 4)


def uniform(seed, shape=SHAPE):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def lengths(moves):
    return moves.double().flatten(1).norm(dim=1)


def saturated():
    """Images that are black or white in two of three pixels."""
    return (3 * uniform(0) - 1).clamp(0, 1)


def test_points_outside_are_projected_inside_both_ball_and_cube():
    centre = saturated()
    points = Ball(centre, 0.3).project(centre + 3 * (uniform(1) - 0.5))
    assert (lengths(points - centre) <= 0.3).all()
    assert points.min() >= 0.0
    assert points.max() <= 1.0
    assert (lengths(points - centre) > 0.3 * (1 - 1e-5)).all()


def test_points_inside_stay_where_they_are():
    centre = saturated()
    inside = Ball(centre, 0.3).project(centre + 0.05 * (uniform(1) - 0.5))
    torch.testing.assert_close(Ball(centre, 0.3).project(inside), inside, rtol=0, atol=0)


def test_where_no_pixel_is_at_its_end_the_projection_scales():
    centre, move = torch.full(SHAPE, 0.5), uniform(1) - 0.5
    expected = centre + 0.3 * move / lengths(move).float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(Ball(centre, 0.3).project(centre + move), expected, rtol=0, atol=3e-6)


def test_a_pixel_at_its_end_costs_nothing_of_the_radius():
    # The first pixel cannot go below 0, so the second has the whole radius; scaling and clamping would leave it .1.
    centre, point = torch.tensor([[0.0, 0.5]]), torch.tensor([[-0.8, 1.0]])
    torch.testing.assert_close(Ball(centre, 0.3).project(point), torch.tensor([[0.0, 0.8]]), rtol=0, atol=2e-6)


def test_no_point_of_the_set_is_nearer_than_the_projection():
    centre, point = saturated()[:5], saturated()[:5] + 2 * (uniform(2)[:5] - 0.5)
    ball = Ball(centre, 0.4)
    nearest = ball.project(point)
    for seed in range(200):
        other = ball.project(nearest + 0.1 * (uniform(seed, nearest.shape) - 0.5))
        assert (lengths(point - nearest) <= lengths(point - other) + 1e-5).all()


def test_directions_have_length_one_however_small_the_gradient_is():
    gradient = uniform(0) - 0.5
    for scale in (1.0, 1e-30):
        torch.testing.assert_close(
            lengths(Ball(uniform(1), 0.1).direction(scale * gradient)), torch.ones(40, dtype=torch.float64)
        )
    assert not Ball(uniform(1), 0.1).direction(torch.zeros(SHAPE)).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_points_are_inside_differ_and_repeat_themselves(norm):
    centre = saturated()
    region = ball_around(centre, 0.2, norm)
    points = region.random(uniform(3))
    change = points - centre
    assert (change.abs().amax() if norm == "linf" else lengths(change).max()) <= 0.2 + 6e-8  # one rounding of a pixel
    assert points.min() >= 0.0
    assert points.max() <= 1.0
    assert torch.equal(points, region.random(uniform(3)))
    assert not torch.equal(points, region.random(uniform(4)))
    assert torch.isfinite(region.random(torch.zeros(SHAPE))).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_rows_of_a_region_are_those_samples_sets(norm):
    centre = saturated()
    keep = torch.arange(40) % 3 == 0
    points = centre + uniform(5) - 0.5
    whole = ball_around(centre, 0.2, norm)
    assert torch.equal(whole.rows(keep).project(points[keep]), whole.project(points)[keep])


def test_a_descent_in_the_l2_ball_reaches_the_least_value_of_a_linear_function():
    weight, centre, last = uniform(6, (16,)) - 0.5, torch.full((7, 1, 4, 4), 0.5), []

    def check(points, rows):
        last[:] = [points]
        return torch.zeros(len(rows), dtype=torch.bool)

    region = Ball(centre, 0.1)
    start = region.random(uniform(7, centre.shape))
    values = lambda points, rows: (points - 0.5).flatten(1) @ weight  # noqa: E731, ARG005
    descend(values, start, region, steps=20, first_step=0.2, check=check)
    expected = -0.1 * float(weight.norm())
    np.testing.assert_allclose(values(last[0], None), expected, rtol=1e-4)


def test_a_box_has_its_own_bounds():
    box = Box(torch.zeros(1, 2), torch.tensor([[0.5, 1.0]]))
    assert box.project(torch.tensor([[0.7, -1.0]])).tolist() == [[0.5, 0.0]]
    assert box.random(torch.tensor([[0.5, 0.25]])).tolist() == [[0.25, 0.25]]
