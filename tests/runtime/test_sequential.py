import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_defend.sequential import (
    SequentialTest,
    correction_vote,
    member_scores,
    run_sequential_test,
    wald_boundaries,
    wald_increments,
)


def wald_test(n: int = 24, *, waves: tuple[int, ...] | None = None, **changes: object) -> SequentialTest:
    lower, upper = wald_boundaries(0.05, 0.05)
    tables: dict[str, object] = {
        "evidence": "margin",
        "edges": np.full((n, 1), 1e-4, dtype=np.float32),
        "increments": np.tile(wald_increments(0.05, 0.6), (n, 1)),
        "lower": np.full(n, lower),
        "upper": np.full(n, upper),
        "final_threshold": 0.0,
        "vote_members": 0,
        "base_vote_weight": 1.0,
        "waves": waves or (n,),
    }
    return SequentialTest(**(tables | changes))  # type: ignore[arg-type]


def answers(labels: list[list[int]], classes: int = 3) -> np.ndarray:
    """Log-probabilities [n, N, K] of members that say `labels[member][input]` with probability .8."""
    spread = np.full((len(labels), len(labels[0]), classes), 0.2 / (classes - 1))
    for i, row in enumerate(labels):
        for j, label in enumerate(row):
            spread[i, j, label] = 0.8
    return np.log(spread).astype(np.float32)


def test_wald_increments_are_the_log_likelihood_ratios_of_one_vote() -> None:
    agrees, disagrees = wald_increments(0.05, 0.6)
    assert disagrees == pytest.approx(math.log(12.0))
    assert agrees == pytest.approx(math.log(0.4 / 0.95))


def test_wald_boundaries_are_symmetric_for_equal_error_rates() -> None:
    lower, upper = wald_boundaries(0.05, 0.05)
    assert upper == pytest.approx(math.log(19.0))
    assert lower == pytest.approx(-upper)


@pytest.mark.parametrize(("clean", "adversarial"), [(0.0, 0.5), (0.6, 0.05), (0.3, 1.0), (0.2, 0.2)])
def test_levels_out_of_order_are_refused(clean: float, adversarial: float) -> None:
    with pytest.raises(ValueError, match="0 < level_clean < level_adversarial < 1"):
        wald_increments(clean, adversarial)


def test_four_agreeing_members_accept_and_two_disagreeing_members_flag() -> None:
    # ln 12 = 2.48 a disagreement, ln(.4/.95) = -.865 an agreement, boundaries +-2.94, worked by hand.
    outcome = run_sequential_test(wald_test(), answers([[0, 1]] * 24), np.array([0, 0]))
    assert outcome.adversarial.tolist() == [False, True]
    assert outcome.members_used.tolist() == [4, 2]
    assert outcome.log_likelihood_ratio == pytest.approx([4 * math.log(0.4 / 0.95), 2 * math.log(12.0)])
    assert outcome.label.tolist() == [0, 1]
    assert outcome.label_change_rate.tolist() == [0.0, 1.0]


def test_operating_characteristic_agrees_with_exact_dynamic_programming_within_three_standard_errors() -> None:
    # P(adversarial | p) = .0169 at p = .05 and .9697 at p = .6; average sample numbers 4.82 and 3.54.
    rng = np.random.default_rng(0)
    count = 20_000
    for rate, flagged, asked in ((0.05, 0.0169, 4.82), (0.6, 0.9697, 3.54)):
        labels = (rng.random((24, count)) < rate).astype(int)
        logp = np.log(np.where(labels[..., None] == np.arange(2), 0.8, 0.2)).astype(np.float32)
        outcome = run_sequential_test(wald_test(), logp, np.zeros(count, dtype=np.int64))
        error = 3 * math.sqrt(flagged * (1 - flagged) / count)
        assert abs(outcome.adversarial.mean() - flagged) < error + 5e-5
        spread = 3 * outcome.members_used.std() / math.sqrt(count)
        assert abs(outcome.members_used.mean() - asked) < spread + 5e-3


def test_a_flagged_input_goes_on_to_the_vote_but_its_evidence_stands() -> None:
    labels = [[1], [1], [2], [2], [2], [0]] + [[0]] * 18
    outcome = run_sequential_test(wald_test(vote_members=6), answers(labels), np.array([0]))
    assert outcome.members_used.tolist() == [6]
    assert outcome.votes.tolist() == [[1, 2, 3]]
    assert outcome.log_likelihood_ratio == pytest.approx([2 * math.log(12.0)])
    assert outcome.label.tolist() == [2]


def test_a_near_tie_counts_as_agreement_with_the_base_label() -> None:
    logp = np.log(np.array([[[0.49998, 0.50002]]] * 24)).astype(np.float32)
    outcome = run_sequential_test(wald_test(), logp, np.array([0]))
    assert outcome.votes.tolist() == [[4, 0]]
    assert not outcome.adversarial[0]


@pytest.mark.parametrize(("threshold", "flagged"), [(math.inf, False), (-math.inf, True), (0.0, True), (9.0, False)])
def test_truncation_follows_the_final_rule(threshold: float, flagged: bool) -> None:
    test = wald_test(1, final_threshold=threshold)
    assert run_sequential_test(test, answers([[1]]), np.array([0])).adversarial.tolist() == [flagged]


def test_votes_for_the_base_label_weigh_less_and_ties_go_to_higher_summed_log_probability_then_lower_class() -> None:
    votes = np.array([[3, 2, 0], [0, 2, 2], [0, 2, 2]])
    summed = np.array([[-1.0, -1.0, -9.0], [-9.0, -2.0, -1.0], [-9.0, -1.0, -1.0]])
    assert correction_vote(votes, summed, np.array([0, 0, 0]), 0.5).tolist() == [1, 2, 1]


def test_surprise_is_the_negative_log_probability_of_the_base_label() -> None:
    logp = answers([[0, 2]])
    assert member_scores("surprise", logp, np.array([0, 0])) == pytest.approx(-np.log([[0.8, 0.1]]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(1, 11), members=st.integers(1, 9))
def test_permuting_or_splitting_the_batch_changes_nothing(seed: int, cut: int, members: int) -> None:
    rng = np.random.default_rng(seed)
    logp = np.log(rng.dirichlet(np.ones(4), size=(members, 12))).astype(np.float32)
    base = rng.integers(0, 4, 12)
    test = wald_test(members, vote_members=int(rng.integers(0, members + 1)), base_vote_weight=0.3)
    whole = run_sequential_test(test, logp, base)
    order = rng.permutation(12)
    permuted = run_sequential_test(test, logp[:, order], base[order])
    halves = [run_sequential_test(test, logp[:, part], base[part]) for part in (slice(0, cut), slice(cut, 12))]
    for name in ("label", "adversarial", "log_likelihood_ratio", "members_used", "votes", "label_change_rate"):
        assert np.array_equal(getattr(whole, name)[order], getattr(permuted, name))
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(half, name) for half in halves]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waves": (2, 2)}, "sum to 3"),
        ({"lower": np.full(3, 5.0)}, "below its upper"),
        ({"vote_members": 4}, r"0\.\.3"),
        ({"edges": np.zeros((3, 2), dtype=np.float32)}, "edges must be float32"),
        ({"increments": np.full((3, 2), np.nan)}, "finite"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wald_test(3, **changes)
