import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.correlated_members import answers_of, correlated_answers, voted

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_train.calibration import (
    Answers,
    Detection,
    auroc,
    calibrate,
    cross_fitted_evidence,
    fit_tables,
    greedy_order,
)
from s2ap_train.calibration.boundaries import alarm_statistic, closed_when_nothing_follows, without_closing
from s2ap_train.calibration.calibration import with_conformal_boundary
from s2ap_train.calibration.evidence import increasing_ratio
from s2ap_train.calibration.jury import Jury
from s2ap_train.calibration.ordering import gaining_members


def test_graded_evidence_counts_its_bins_smoothed_by_one_half() -> None:
    """Surprises .5, 1, 2: 50, 40, 10 of clean and 10, 30, 60 of fooled inputs; thirds of the pool begin at 1 and 2."""

    def surprised(counts: tuple[int, int, int]) -> Answers:
        surprise = np.repeat([0.5, 1.0, 2.0], counts)
        base = np.zeros(len(surprise), dtype=np.int64)
        logp = np.stack([-surprise, np.log1p(-np.exp(-surprise))], axis=1)[None].astype(np.float32)
        return answers_of(logp, base, base)

    tables = fit_tables(surprised((50, 40, 10)), surprised((10, 30, 60)), 3)
    bins = [np.searchsorted(tables.edges[0], value, side="right") for value in (0.5, 1.0, 2.0)]
    assert bins == [0, 1, 2]
    np.testing.assert_allclose(
        tables.increments[0], [math.log(10.5 / 50.5), math.log(30.5 / 40.5), math.log(60.5 / 10.5)], rtol=1e-12
    )


def test_increments_are_monotone_in_the_surprise_and_of_both_signs() -> None:
    rng = np.random.default_rng(0)
    tables = fit_tables(
        correlated_answers(rng, 300, [0.05, 0.1]), correlated_answers(rng, 300, [0.8, 0.6], fooled=True), 6
    )
    assert tables.edges.dtype == np.float32
    assert tables.edges.shape == (2, 5)
    assert (np.diff(tables.increments, axis=1) >= 0).all()
    assert (tables.increments[:, 0] < 0).all()
    assert (tables.increments[:, -1] > 0).all()


def test_members_that_only_vote_keep_their_edges_and_say_nothing() -> None:
    rng = np.random.default_rng(0)
    tables = fit_tables(
        correlated_answers(rng, 300, [0.05, 0.1, 0.1]), correlated_answers(rng, 300, [0.8, 0.6, 0.7], fooled=True), 6
    )
    two = tables.only_of(2)
    np.testing.assert_array_equal(two.edges, tables.edges)
    np.testing.assert_array_equal(two.increments[:2], tables.increments[:2])
    assert (two.increments[2] == 0.0).all()
    assert (tables.increments[2] != 0.0).any()


@pytest.mark.parametrize("bins", [2, 6])
def test_a_member_that_is_more_surprised_by_clean_inputs_says_nothing(bins: int) -> None:
    rng = np.random.default_rng(0)
    tables = fit_tables(correlated_answers(rng, 300, [0.8]), correlated_answers(rng, 300, [0.01], fooled=True), bins)
    assert (tables.increments == 0.0).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8))
def test_the_monotone_ratio_never_falls_and_keeps_the_masses_of_its_blocks(pairs: list[tuple[int, int]]) -> None:
    above, below = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    ratio = increasing_ratio(above, below)
    assert (np.diff(ratio) >= -1e-12).all()
    assert (ratio * below).sum() == pytest.approx(above.sum())
    if (np.diff(above / below) > 0).all():
        np.testing.assert_allclose(ratio, above / below)


def test_an_image_and_its_copies_are_never_in_different_folds() -> None:
    """Members disagree with one clean image in five and its attacked copies: its fold has no such example to learn."""
    clean = voted([[j % 5 == 0 for j in range(50)]])
    attacked = replace(voted([[j % 5 == 0 for j in range(150)]], right=False), image=np.arange(150) % 50)
    of_clean, of_fooled = cross_fitted_evidence(clean, attacked, 2)
    assert (of_clean[0, ::5] == 0.0).all()  # tables without that fold saw no disagreement on either side: no evidence
    assert (of_fooled[0, ::5] == 0.0).all()
    shuffled = replace(attacked, image=np.arange(150) // 3)  # copies all over the folds: they know one another
    assert not (cross_fitted_evidence(clean, shuffled, 2)[1][0, ::5] == 0.0).all()


def test_greedy_order_asks_the_best_separating_member_first() -> None:
    clean = np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    fooled = np.array([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert greedy_order(clean, fooled).tolist() == [1, 0]


def test_order_is_by_gain_per_cost() -> None:
    """Areas alone: 3/4 of member 0 and 1 of member 1. At costs 1 and 4 the gains per cost are .25 and .125."""
    clean = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    fooled = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert (auroc(clean[0], fooled[0]), auroc(clean[1], fooled[1])) == (0.75, 1.0)
    assert greedy_order(clean, fooled).tolist() == [1, 0]
    assert greedy_order(clean, fooled, [1.0, 4.0]).tolist() == [0, 1]
    assert greedy_order(clean, fooled, [1.0, 1.5]).tolist() == [1, 0]


def test_members_that_gain_nothing_come_last_the_cheaper_and_the_harmless_first() -> None:
    zero, good = np.zeros(4), np.array([1.0, 1.0, 1.0, 1.0])
    harms = np.array([5.0, 0.0, 0.0, 0.0])
    clean = np.stack([harms, zero, zero, zero, zero])
    fooled = np.stack([zero, zero, zero, good, zero])
    assert greedy_order(clean, fooled).tolist() == [3, 1, 2, 4, 0]
    assert greedy_order(clean, fooled, [1.0, 2.0, 3.0, 1.0, 1.0]).tolist() == [3, 4, 1, 2, 0]
    two = np.array([0, 3, 0])  # two that harm alike: the costly one is asked last
    assert greedy_order(clean[two], fooled[two], [5.0, 1.0, 2.0]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("costs", [[1.0], [1.0, 0.0], [1.0, math.inf], [1.0, -2.0]])
def test_costs_that_are_no_costs_are_refused(costs: list[float]) -> None:
    with pytest.raises(RecipeError, match="ordering needs 2 positive costs"):
        greedy_order(np.zeros((2, 3)), np.ones((2, 3)), costs)


def test_the_area_counts_ties_half() -> None:
    assert auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
    assert auroc(np.array([0.1 + 0.2]), np.array([0.3])) == 0.5  # the same sum in another order


def test_members_gain_until_the_first_that_does_not() -> None:
    clean = np.array([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -5.0]])
    fooled = np.array([[1.0] * 4, [0.0] * 4, [0.0] * 4, [0.0] * 4])
    assert [auroc(clean[:k].sum(0), fooled[:k].sum(0)) for k in (1, 2, 3, 4)] == [0.75, 0.875, 0.875, 1.0]
    assert gaining_members(clean, fooled) == 2
    assert gaining_members(clean[:2], fooled[:2]) == 2


def test_members_that_add_nothing_only_vote_and_are_not_asked_of_clean_inputs() -> None:
    rng = np.random.default_rng(0)
    clean, fooled = [0.05, 0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5], [0.9, 0.7, 0.6, 0.6, 0.3, 0.3, 0.3, 0.3]
    fit = correlated_answers(rng, 300, clean), correlated_answers(rng, 300, fooled, fooled=True)
    held_out = correlated_answers(rng, 300, clean)
    gaining, every = (
        calibrate(*fit, held_out, Detection(evidence=who, min_accept=2), Jury.behind_classifier(fit[0].members))
        for who in ("gaining", "all")  # type: ignore[arg-type]
    )
    assert gaining.order.tolist() == every.order.tolist()
    evidence = cross_fitted_evidence(*fit, 6)
    heard = gaining_members(*(part[gaining.order] for part in evidence))
    assert 2 <= heard <= 4
    silent = (np.array(gaining.tables.increments) == 0.0).all(axis=1)
    assert silent.tolist() == [False] * heard + [True] * (8 - heard)
    fresh = correlated_answers(rng, 300, clean).reorder(gaining.order)
    outcome = run_sequential_test(gaining.test, fresh.said)
    assert outcome.members_used[~outcome.adversarial].max() == (~silent).sum()


@pytest.mark.parametrize("final_threshold", [math.inf, 0.0])
def test_closing_a_test_early_changes_no_verdict_but_those_of_a_truncation_that_flags(final_threshold: float) -> None:
    rng = np.random.default_rng(0)
    inputs = correlated_answers(rng, 400, [0.4] * 5)
    increments = np.tile([-1.0, 1.5], (5, 1))
    increments[3:] = 0.0
    test = SequentialTest(
        evidence="margin",
        edges=np.full((5, 1), 1e-4, dtype=np.float32),
        increments=increments,
        lower=np.full(5, -2.5),
        upper=np.full(5, 2.9),
        final_threshold=final_threshold,
        waves=(5,),
        vote_weights=np.ones(5),
        answer="accurate",
    )
    closed = closed_when_nothing_follows(test, 1)
    before, after = (run_sequential_test(t, inputs.said) for t in (test, closed))
    undecided = (before.log_likelihood_ratio < 2.9) & (before.log_likelihood_ratio > -2.5)
    assert undecided.any()
    assert not after.adversarial[undecided].any()
    np.testing.assert_array_equal(after.adversarial[~undecided], before.adversarial[~undecided])
    assert (after.members_used[undecided] == 3).all()
    if final_threshold == math.inf:
        np.testing.assert_array_equal(after.label, before.label)


def test_an_alarm_boundary_that_is_raised_above_the_clean_one_does_not_pass_for_a_closed_one() -> None:
    test = SequentialTest(
        evidence="margin",
        edges=np.full((3, 1), 1e-4, dtype=np.float32),
        increments=np.array([[-3.0, 1.5], [-3.0, 1.5], [0.0, 0.0]]),
        lower=np.full(3, -2.5),
        upper=np.full(3, math.inf),
        final_threshold=math.inf,
        waves=(3,),
        vote_weights=np.ones(3),
        answer="accurate",
    )
    agreeing = voted([[False] * 30 + [True] * 10] * 3)  # three of four say -3 at once: below the clean boundary
    raised = with_conformal_boundary(test, alarm_statistic(test, agreeing), 0.5)
    assert -2.5 < raised.upper[0] < -2.5 + 1e-12
    closed = closed_when_nothing_follows(raised, 1)
    assert without_closing(closed).tolist() == [-2.5, -math.inf, -math.inf]
