import math
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.sequential_cases import answers

from s2ap_defend.sequential import (
    SequentialOutcome,
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
        "waves": waves or (n,),
    }
    return SequentialTest(**(tables | changes))  # type: ignore[arg-type]


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


def unit_test(members: int, **changes: object) -> SequentialTest:
    """-1 for an agreement, +1 for a disagreement, no boundaries; whoever is undecided is adversarial; all vote."""
    tables: dict[str, object] = {
        "increments": np.tile([-1.0, 1.0], (members, 1)),
        "lower": np.full(members, -np.inf),
        "upper": np.full(members, np.inf),
        "final_threshold": -math.inf,
        "vote_members": members,
        "curtail": False,
    }
    return wald_test(members, **(tables | changes))  # type: ignore[arg-type]


def run_labels(test: SequentialTest, *labels: int) -> SequentialOutcome:
    """The outcome of one input with base label 0, of which the members say these labels."""
    return run_sequential_test(test, answers([[label] for label in labels]), np.array([0]))


def test_votes_for_the_base_label_weigh_what_the_evidence_says_an_edge_belonging_to_the_weight_above_it() -> None:
    weights = np.array([0.9, 0.1])
    on_edge = unit_test(3, base_vote_weights=weights, base_vote_edges=np.array([-1.0]))
    below = unit_test(3, base_vote_weights=weights, base_vote_edges=np.array([np.nextafter(-1.0, 0.0)]))
    assert run_labels(on_edge, 0, 0, 1).log_likelihood_ratio.tolist() == [-1.0]
    assert run_labels(on_edge, 0, 0, 1).label.tolist() == [1]  # 2 * .1 < 1
    assert run_labels(below, 0, 0, 1).label.tolist() == [0]  # 2 * .9 > 1


def test_the_weight_of_the_base_label_is_that_of_the_alarm_and_not_of_what_the_vote_adds() -> None:
    test = unit_test(4, upper=np.full(4, 1.0), base_vote_weights=np.array([0.1, 0.9]), base_vote_edges=np.array([1.0]))
    outcome = run_labels(test, 1, 0, 0, 0)
    assert outcome.log_likelihood_ratio.tolist() == [1.0]
    assert outcome.label.tolist() == [0]  # 3 * .9 > 1; by the end of the path, at -2, it would be 3 * .1 < 1


def test_a_curtailed_vote_ends_when_the_votes_that_are_left_cannot_tie() -> None:
    # Flagged by the first two of six; 3 : 0 with three left could still be tied, 4 : 0 with two left could not.
    test = wald_test(6, vote_members=6)
    assert run_labels(test, 1, 1, 1, 1, 2, 2).votes.tolist() == [[0, 4, 0]]
    assert run_labels(test, 1, 1, 1, 2, 2, 2).votes.tolist() == [[0, 3, 3]]
    assert run_labels(replace(test, curtail=False), 1, 1, 1, 1, 2, 2).votes.tolist() == [[0, 4, 2]]


def test_votes_that_weigh_less_settle_a_curtailed_vote_earlier() -> None:
    test = unit_test(6, upper=np.full(6, 2.0), curtail=True)
    assert run_labels(test, 1, 1, 0, 1, 1, 0).members_used.tolist() == [5]  # 4 : 1 with one left
    light = replace(test, base_vote_weights=np.array([0.5]))
    assert run_labels(light, 1, 1, 0, 1, 1, 0).members_used.tolist() == [4]  # 3 : 0.5 with two left


def test_nothing_is_settled_before_the_alarm_says_what_a_vote_weighs() -> None:
    # After four agreements 4 : 0 could not be tied by two. The alarm makes it 1.2 : 1, and the sixth vote wins.
    increments = np.tile([-1.0, 1.0], (6, 1))
    increments[4, 1] = 10.0
    weights = {"base_vote_weights": np.array([1.0, 0.3]), "base_vote_edges": np.array([0.0])}
    test = unit_test(6, increments=increments, upper=np.full(6, 5.0), curtail=True, **weights)
    outcome = run_labels(test, 0, 0, 0, 0, 1, 1)
    assert (outcome.members_used.tolist(), outcome.label.tolist()) == ([6], [1])


def test_a_flag_beyond_the_voting_members_asks_no_more() -> None:
    test = wald_test(6, vote_members=2, upper=np.array([9.0, 9.0, 7.0, 9.0, 9.0, 9.0]), lower=np.full(6, -9.0))
    assert run_labels(test, 1, 2, 1, 2, 2, 2).votes.tolist() == [[0, 2, 1]]


def test_a_rejected_input_abstains_keeps_the_base_label_and_asks_nobody_for_a_vote() -> None:
    outcome = run_sequential_test(wald_test(vote_members=8, correct=False), answers([[1, 0]] * 24), np.array([0, 0]))
    assert outcome.adversarial.tolist() == [True, False]
    assert outcome.abstained.tolist() == [True, False]
    assert outcome.label.tolist() == [0, 0]
    assert outcome.members_used.tolist() == [2, 4]


def test_an_undecided_input_abstains_under_that_truncation_and_is_neither_clean_nor_adversarial() -> None:
    test = unit_test(3, final_threshold=math.inf, undecided_abstains=True, upper=np.array([np.inf, 2.0, np.inf]))
    outcome = run_sequential_test(test, answers([[1, 1], [0, 1], [1, 1]]), np.array([0, 0]))
    assert outcome.adversarial.tolist() == [False, True]
    assert outcome.abstained.tolist() == [True, False]
    assert outcome.label.tolist() == [0, 1]


def test_correction_abstains_from_nothing() -> None:
    assert not run_sequential_test(wald_test(), answers([[0, 1]] * 24), np.array([0, 0])).abstained.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waves": (2, 2)}, "sum to 3"),
        ({"lower": np.full(3, 5.0)}, "below its upper"),
        ({"vote_members": 4}, r"0\.\.3"),
        ({"edges": np.zeros((3, 2), dtype=np.float32)}, "edges must be float32"),
        ({"increments": np.full((3, 2), np.nan)}, "finite"),
        ({"final_threshold": math.nan}, "final_threshold must be a number"),
        ({"undecided_abstains": True}, "final_threshold is 0.0 although undecided inputs abstain; set it to inf"),
        ({"base_vote_weights": np.array([0.5, 0.5])}, "one entry more than base_vote_edges"),
        ({"base_vote_weights": np.array(0.5)}, "one entry more than base_vote_edges"),
        ({"base_vote_weights": np.array([1.5])}, r"must be in \[0, 1\], got \[1.5\]"),
        ({"base_vote_weights": np.array([math.nan])}, r"must be in \[0, 1\]"),
        ({"base_vote_weights": np.array([1])}, "must be float64, got int64"),
        ({"base_vote_weights": np.ones(3), "base_vote_edges": np.array([1.0, 0.0])}, "finite and ascend"),
        ({"base_vote_weights": np.ones(2), "base_vote_edges": np.array([math.inf])}, "finite and ascend"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wald_test(3, **changes)
