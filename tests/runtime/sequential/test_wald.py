"""Wald's formulas and boundaries, the paper's levels."""

import math

import numpy as np
import pytest
from tests.runtime.designs import DESIGNS

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import (
    StageAnswers,
    binary_tables,
    paper_levels,
    run_sequential_test,
    ville_boundary,
)
from s2ap_defend.sequential.approximations import wald_acceptance, wald_exponent, wald_members
from s2ap_defend.sequential.design import Design, operating_characteristic


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_walds_exponent_is_one_at_q0_and_minus_one_at_q1(design: Design) -> None:
    assert wald_exponent(design, design.q0) == pytest.approx(1.0, abs=1e-12)
    assert wald_exponent(design, design.q1) == pytest.approx(-1.0, abs=1e-12)
    agrees, disagrees = design.increments
    for p in (1e-9, 0.07, 0.5, 0.97):
        h = wald_exponent(design, p)
        assert p * math.exp(h * disagrees) + (1.0 - p) * math.exp(h * agrees) == pytest.approx(1.0, abs=1e-12)
        assert h != 0.0 or p == 0.5


def test_walds_characteristic_is_one_minus_alpha_at_q0_and_beta_at_q1() -> None:
    design = Design(0.1, 0.4, alpha=0.02, beta=0.1)
    assert wald_acceptance(design, 0.1) == pytest.approx(0.98)
    assert wald_acceptance(design, 0.4) == pytest.approx(0.1)
    assert (wald_acceptance(design, 0.0), wald_acceptance(design, 1.0)) == (1.0, 0.0)
    agrees, disagrees = design.increments
    lower, upper = design.boundaries
    assert wald_members(design, 0.0) == pytest.approx(lower / agrees)
    assert wald_members(design, 1.0) == pytest.approx(upper / disagrees)
    drift = 0.4 * disagrees + 0.6 * agrees
    assert wald_members(design, 0.4) == pytest.approx((0.1 * lower + 0.9 * upper) / drift)


def test_walds_formulas_are_continuous_where_the_evidence_has_no_drift() -> None:
    design = Design(0.05, 0.6, alpha=0.02, beta=0.1)
    agrees, disagrees = design.increments
    still = -agrees / (disagrees - agrees)
    lower, upper = design.boundaries
    assert wald_acceptance(design, still) == pytest.approx(upper / (upper - lower), rel=1e-9)
    for gap in (1e-6, -1e-6, 1e-9, -1e-9, 0.0):
        assert wald_acceptance(design, still + gap) == pytest.approx(upper / (upper - lower), rel=1e-5)
        assert wald_members(design, still + gap) == pytest.approx(wald_members(design, still), rel=1e-5)
    assert wald_members(design, still) == pytest.approx(
        -upper * lower / (still * disagrees**2 + (1.0 - still) * agrees**2)
    )


def test_walds_sample_number_is_close_where_boundaries_are_far_and_votes_weak() -> None:
    # Without overshoot the approximation is exact; here one vote is 2 % of the way to a boundary.
    design = Design(0.29, 0.31, alpha=0.05, beta=0.05, n_max=2000, truncation="clean")
    weak = Design(0.28, 0.33, alpha=0.05, beta=0.05, n_max=2000, truncation="clean")
    assert operating_characteristic(weak, 0.28).mean_members == pytest.approx(wald_members(weak, 0.28), rel=0.03)
    assert operating_characteristic(design, 0.4).mean_members == pytest.approx(wald_members(design, 0.4), rel=0.03)


def test_villes_boundary_is_the_log_of_one_over_alpha() -> None:
    assert ville_boundary(0.05) == pytest.approx(math.log(20.0))
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="0 < alpha < 1"):
            ville_boundary(alpha)


def test_the_papers_levels_are_ten_percent_around_the_upper_end_of_a_99_percent_interval() -> None:
    q0, q1 = paper_levels([0.02, 0.04, 0.06])
    zeta = 0.04 + 2.58 * 0.02 / math.sqrt(3.0)
    assert (q0, q1) == pytest.approx((0.9 * zeta, 1.1 * zeta))
    for rates in ([], [0.1], [0.0, 0.0], [0.1, 1.2], [0.1, math.nan], [1.0, 1.0]):
        with pytest.raises(RecipeError, match="the paper's levels"):
            paper_levels(rates)


def test_binary_tables_put_near_ties_with_agreement() -> None:
    edges, increments = binary_tables(0.05, 0.6, members=3)
    assert edges.shape == (3, 1)
    assert edges.dtype == np.float32
    assert increments[2] == pytest.approx([math.log(0.4 / 0.95), math.log(12.0)])
    below = np.nextafter(edges[0, 0], np.float32(0.0))
    test = Design(0.05, 0.6, n_max=3).test()
    logp = np.array([[[0.0, below]], [[0.0, edges[0, 0]]], [[0.0, -1.0]]], dtype=np.float32)
    outcome = run_sequential_test(test, StageAnswers(logp[2], logp))
    assert outcome.label_change_rate[0] == pytest.approx(1.0 / 3.0)
    assert outcome.log_likelihood_ratio[0] == pytest.approx(2.0 * increments[0, 0] + increments[0, 1])


def test_binary_tables_take_levels_of_each_member() -> None:
    edges, increments = binary_tables([0.05, 0.1], [0.6, 0.5])
    assert edges.shape == (2, 1)
    assert increments[:, 1] == pytest.approx([math.log(12.0), math.log(5.0)])
    assert binary_tables([0.05, 0.1], 0.6, members=2)[1][1, 1] == pytest.approx(math.log(6.0))
    with pytest.raises(ValueError, match="do not fit 3 members"):
        binary_tables([0.05, 0.1], 0.6, members=3)
    with pytest.raises(ValueError, match="0 < level_clean < level_adversarial < 1"):
        binary_tables([0.05, 0.6], 0.5)
