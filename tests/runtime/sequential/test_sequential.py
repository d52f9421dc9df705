import math
from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.sequential_cases import answers, said
from tests.runtime.sequential_cases import sequential_test as voting_test

from s2ap_defend.sequential import (
    SequentialOutcome,
    SequentialTest,
    Signal,
    StageAnswers,
    member_scores,
    run_sequential_test,
    wald_boundaries,
    wald_increments,
)
from s2ap_defend.sequential.tables import Increments


def wald_test(n: int = 24, *, waves: tuple[int, ...] | None = None, **changes: object) -> SequentialTest:
    lower, upper = wald_boundaries(0.05, 0.05)
    tables: dict[str, object] = {
        "evidence": "margin",
        "edges": np.full((n, 1), 1e-4, dtype=np.float32),
        "increments": np.tile(wald_increments(0.05, 0.6), (n, 1)),
        "lower": np.full(n, lower),
        "upper": np.full(n, upper),
        "final_threshold": 0.0,
        "waves": waves or (n,),
        "vote_weights": np.ones(n),
        "answer": "accurate",
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
    outcome = run_sequential_test(wald_test(correction="reject"), said([[0, 1]] * 24, [0, 0]))
    assert outcome.adversarial.tolist() == [False, True]
    assert outcome.members_used.tolist() == [4, 2]
    assert outcome.log_likelihood_ratio == pytest.approx([4 * math.log(0.4 / 0.95), 2 * math.log(12.0)])
    assert outcome.label_change_rate.tolist() == [0.0, 1.0]


def test_operating_characteristic_agrees_with_exact_dynamic_programming_within_three_standard_errors() -> None:
    # P(adversarial | p) = .0169 at p = .05 and .9697 at p = .6; average sample numbers 4.82 and 3.54.
    rng = np.random.default_rng(0)
    count = 20_000
    for rate, flagged, asked in ((0.05, 0.0169, 4.82), (0.6, 0.9697, 3.54)):
        labels = (rng.random((24, count)) < rate).astype(int)
        logp = np.log(np.where(labels[..., None] == np.arange(2), 0.8, 0.2)).astype(np.float32)
        base = answers([[0] * count], 2)[0]
        outcome = run_sequential_test(wald_test(correction="reject"), StageAnswers(base, logp))
        error = 3 * math.sqrt(flagged * (1 - flagged) / count)
        assert abs(outcome.adversarial.mean() - flagged) < error + 5e-5
        spread = 3 * outcome.members_used.std() / math.sqrt(count)
        assert abs(outcome.members_used.mean() - asked) < spread + 5e-3


def test_a_flagged_input_goes_on_to_the_vote_but_its_evidence_stands() -> None:
    labels = [[1], [1], [2], [2], [2], [0]]
    outcome = run_sequential_test(wald_test(6, curtail=False), said(labels, [0]))
    assert outcome.members_used.tolist() == [6]
    assert outcome.votes.tolist() == [[1, 2, 3]]
    assert outcome.log_likelihood_ratio == pytest.approx([2 * math.log(12.0)])
    assert outcome.label.tolist() == [2]


def test_a_near_tie_is_no_change_of_the_label() -> None:
    logp = np.log(np.array([[[0.49998, 0.50002]]] * 24)).astype(np.float32)
    outcome = run_sequential_test(wald_test(), StageAnswers(answers([[0]], 2)[0], logp))
    assert outcome.label_change_rate.tolist() == [0.0]
    assert not outcome.adversarial[0]


@pytest.mark.parametrize(("threshold", "flagged"), [(math.inf, False), (-math.inf, True), (0.0, True), (9.0, False)])
def test_truncation_follows_the_final_rule(threshold: float, flagged: bool) -> None:
    test = wald_test(1, final_threshold=threshold)
    assert run_sequential_test(test, said([[1]], [0])).adversarial.tolist() == [flagged]


def test_surprise_is_the_negative_log_probability_of_the_label() -> None:
    logp = answers([[0, 2]])
    assert member_scores("surprise", logp, np.array([0, 0])) == pytest.approx(-np.log([[0.8, 0.1]]))


def unit_test(members: int, **changes: object) -> SequentialTest:
    """-1 for an agreement, +1 for a disagreement, no boundaries; whoever is undecided is adversarial; all vote."""
    tables: dict[str, object] = {
        "increments": np.tile([-1.0, 1.0], (members, 1)),
        "lower": np.full(members, -np.inf),
        "upper": np.full(members, np.inf),
        "final_threshold": -math.inf,
        "curtail": False,
    }
    return wald_test(members, **(tables | changes))  # type: ignore[arg-type]


def run_labels(test: SequentialTest, *labels: int) -> SequentialOutcome:
    """The outcome of one input that the classifier calls 0, and of which the members say these labels."""
    return run_sequential_test(test, said([[label] for label in labels], [0]))


def test_the_robust_answer_is_the_weighted_vote_of_those_asked_whatever_the_classifier_says() -> None:
    test = voting_test(3, answer="robust", vote_weights=np.array([1.0, 0.5, 0.25]), lower=np.full(3, -np.inf))
    outcome = run_labels(test, 1, 2, 2)
    assert (outcome.label.tolist(), outcome.base_label.tolist()) == ([1], [0])
    assert outcome.votes.tolist() == [[0.0, 1.0, 0.75]]


def test_the_accurate_answer_is_the_classifiers_until_it_is_flagged() -> None:
    test = voting_test(3, answer="accurate", lower=np.full(3, -np.inf))
    assert run_labels(test, 1, 0, 1).label.tolist() == [0]
    assert run_labels(replace(test, upper=np.full(3, 1.0)), 1, 0, 1).label.tolist() == [1]


def test_evidence_is_measured_against_what_classifier_and_opening_answer_together() -> None:
    # The jurors of the opening say 1: the third member, who says 0 like the classifier, speaks against them.
    test = voting_test(3, answer="robust", opening=2, lower=np.full(3, -np.inf), upper=np.array([np.inf, 9.0, 9.0]))
    outcome = run_labels(test, 1, 1, 0)
    assert (outcome.first_answer.tolist(), outcome.log_likelihood_ratio.tolist()) == ([1], [-1.0])
    assert outcome.label_change_rate == pytest.approx([1 / 3])


def test_clean_waits_until_the_vote_is_settled() -> None:
    boundaries = {"lower": np.full(5, -1.0), "upper": np.full(5, 9.0)}
    test = voting_test(5, answer="robust", **boundaries)
    assert run_labels(test, 0, 0, 0, 0, 0).members_used.tolist() == [1]
    assert run_labels(replace(test, await_vote=True), 0, 0, 0, 0, 0).members_used.tolist() == [3]  # 3 : 0, two left


def test_signals_are_counted_before_any_member() -> None:
    signal = Signal("classifier surprise", np.array([1.0], dtype=np.float32), np.array([-0.5, 2.5]))
    test = voting_test(1, answer="accurate", signals=(signal,))
    assert run_labels(test, 0).log_likelihood_ratio.tolist() == [-1.5]  # -ln .8 = .22 is below the edge
    high = replace(test, answer="robust")
    assert run_labels(high, 1).log_likelihood_ratio.tolist() == [1.5]  # -ln .1 = 2.3 is above it


def test_the_margin_of_the_jury_is_a_signal() -> None:
    # Two jurors say 1 with .8: their mean log-probability of 1 exceeds that of the others by ln 8 = 2.08.
    signal = Signal("jury margin", np.array([-2.0], dtype=np.float32), np.array([-4.0, 0.0]))
    boundaries = {"lower": np.full(2, -np.inf), "upper": np.array([np.inf, 9.0])}
    test = voting_test(2, answer="robust", opening=2, signals=(signal,), **boundaries)
    assert run_labels(test, 1, 1).log_likelihood_ratio.tolist() == [-6.0]
    assert run_labels(test, 1, 2).log_likelihood_ratio.tolist() == [0.0]  # they cancel: -1 + 1 + 0


def test_only_jurors_are_asked_for_the_vote_on_a_flagged_input() -> None:
    test = voting_test(4, upper=np.full(4, 1.0), vote_weights=np.array([1.0, 0.0, 1.0, 1.0]), answer="accurate")
    outcome = run_labels(test, 1, 2, 2, 2)
    assert outcome.members_used.tolist() == [3]
    assert outcome.votes.tolist() == [[0.0, 1.0, 2.0]]
    assert outcome.label.tolist() == [2]


def test_a_curtailed_vote_ends_when_the_votes_that_are_left_cannot_tie() -> None:
    # Flagged by the first two of six; 3 : 0 with three left could still be tied, 4 : 0 with two left could not.
    test = wald_test(6)
    assert run_labels(test, 1, 1, 1, 1, 2, 2).votes.tolist() == [[0, 4, 0]]
    assert run_labels(test, 1, 1, 1, 2, 2, 2).votes.tolist() == [[0, 3, 3]]
    assert run_labels(replace(test, curtail=False), 1, 1, 1, 1, 2, 2).votes.tolist() == [[0, 4, 2]]


def test_a_rejected_input_abstains_and_asks_nobody_for_a_vote() -> None:
    outcome = run_sequential_test(wald_test(correction="reject"), said([[1, 0]] * 24, [0, 0]))
    assert outcome.adversarial.tolist() == [True, False]
    assert outcome.abstained.tolist() == [True, False]
    assert outcome.members_used.tolist() == [2, 4]


@pytest.mark.parametrize(
    ("correction", "label", "abstains"), [("correct", 1, False), ("keep", 0, False), ("reject", 1, True)]
)
def test_a_flagged_mix_gets_the_vote_or_keeps_the_answer_of_the_whole_jury(
    correction: str, label: int, abstains: bool
) -> None:
    # Two of three jurors say 1, by .55 to .45, the last one 0 by .9 to .1: the vote is 1, the mean probability of 0 is
    # .6. The first juror alone answers 1 and raises the alarm; a rejected input is not asked about any more.
    logs = np.log([[[0.45, 0.55]], [[0.45, 0.55]], [[0.9, 0.1]]]).astype(np.float32)
    never, always = np.full(3, -np.inf), np.full(3, -5.0)
    test = voting_test(3, lower=never, upper=always, answer="mixed", correction=correction, curtail=True)
    outcome = run_sequential_test(test, StageAnswers(logs[2], logs))
    assert outcome.adversarial.all()
    assert outcome.label.tolist() == [label]
    assert outcome.abstained.tolist() == [abstains]


def test_a_flagged_answer_of_the_classifier_is_kept_without_asking_anybody() -> None:
    test = voting_test(4, upper=np.full(4, 1.0), answer="accurate", correction="keep")
    outcome = run_labels(test, 1, 1, 1, 1)
    assert (outcome.label.tolist(), outcome.members_used.tolist()) == ([0], [1])


def test_an_undecided_input_abstains_under_that_truncation_and_is_neither_clean_nor_adversarial() -> None:
    test = unit_test(3, final_threshold=math.inf, undecided_abstains=True, upper=np.array([np.inf, 2.0, np.inf]))
    outcome = run_sequential_test(test, said([[1, 1], [0, 1], [1, 1]], [0, 0]))
    assert outcome.adversarial.tolist() == [False, True]
    assert outcome.abstained.tolist() == [True, False]
    assert outcome.label.tolist() == [0, 1]


def test_an_image_outside_the_pixel_range_is_flagged_and_one_without_finite_pixels_abstains() -> None:
    pixels = {"valid": np.array([True, False, False]), "finite": np.array([True, True, False])}
    outcome = run_sequential_test(voting_test(4), said([[0, 0, 0]] * 4, [0, 0, 0], **pixels))
    assert outcome.adversarial.tolist() == [False, True, True]
    assert outcome.abstained.tolist() == [False, False, True]
    assert outcome.members_used.tolist() == [2, 3, 3]  # the vote on flagged ones is settled at 3 : 0 with one left


def test_what_the_opening_does_not_accept_on_the_raw_image_is_decided_behind_the_purifier() -> None:
    # The classifier says 0 of both raw images and 1 of both purified ones; the member says 0, then 1.
    raw = answers([[0, 0]])[0]
    test = voting_test(1, answer="accurate", lower=np.array([-1.0]), upper=np.array([9.0]))
    outcome = run_sequential_test(test, said([[0, 1]], [1, 1], on_raw=raw))
    assert outcome.base_label.tolist() == [0, 1]
    assert outcome.label.tolist() == [0, 1]
    assert outcome.log_likelihood_ratio.tolist() == [-1.0, -1.0]


def test_correction_abstains_from_nothing() -> None:
    assert not run_sequential_test(wald_test(), said([[0, 1]] * 24, [0, 0])).abstained.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"waves": (2, 2)}, "sum to 3"),
        ({"lower": np.full(3, 5.0)}, "below its upper"),
        ({"edges": np.zeros((3, 2), dtype=np.float32)}, "edges must be float32"),
        ({"increments": np.full((3, 2), np.nan)}, "finite"),
        ({"final_threshold": math.nan}, "final_threshold must be a number"),
        ({"undecided_abstains": True}, "final_threshold is 0.0 although undecided inputs abstain; set it to inf"),
        ({"vote_weights": np.ones(2)}, r"vote_weights must be float64 \(3,\)"),
        ({"vote_weights": np.array([1, 1, 1])}, "must be float64"),
        ({"vote_weights": np.array([0.3, 1.0, 1.0])}, "multiples of 1/256"),
        ({"vote_weights": np.array([1.5, 1.0, 1.0])}, r"in \[0, 1\]"),
        ({"vote_weights": np.array([math.nan, 1.0, 1.0])}, r"in \[0, 1\]"),
        ({"vote_weights": np.zeros(3)}, "no member has a vote weight above 0"),
        ({"answer": "robust", "vote_weights": np.array([0.0, 1.0, 1.0])}, "needs a juror among the 1 members"),
        ({"opening": 0}, "opening is 0; it must be 1 to 3"),
        ({"opening": 2, "waves": (1, 2)}, "opening is 2; it must be 1 to 1"),
        ({"opening": 2}, "nothing is decided before the 2 members of the opening"),
        ({"await_vote": True}, "await_vote is for the answer 'robust'"),
        ({"jury_share": 1.5}, "jury_share is 1.5"),
        ({"amplification": 0.0}, "amplification is 0.0"),
        ({"amplification": 1.2}, "amplification is 1.2"),
        ({"amplification": 16.5}, "amplification is 16.5"),
        ({"signals": (Signal("jury margin", np.zeros(2, np.float32), np.zeros(2)),)}, "one increment more than edges"),
        ({"signals": (Signal("jury margin", np.zeros(1, np.float32), np.zeros(2)),) * 2}, "named twice"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wald_test(3, **changes)


def test_increments_are_found_as_by_comparing_every_edge() -> None:
    edges = np.array([-1.0, 0.0, 0.0, 0.5, np.inf], dtype=np.float32)
    scores = np.array([-2.0, -1.0, -0.0, 0.0, 0.3, 0.5, np.inf, -np.inf, np.nan], dtype=np.float32)
    bins = (scores >= edges[:, None]).sum(axis=0)
    assert bins.tolist() == [0, 1, 3, 3, 3, 4, 5, 0, 0]
    assert Increments.of(edges, np.arange(6.0)).at(-scores).tolist() == bins.tolist()
