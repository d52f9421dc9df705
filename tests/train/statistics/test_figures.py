import dataclasses

import numpy as np
import pytest

from s2ap_defend.sequential import SequentialTest
from s2ap_defend.types import Verdicts
from s2ap_train.adaptive.systems import RIGHT, judge
from s2ap_train.statistics.figures import attack_figures, clean_figures, clopper_pearson, worst_case
from s2ap_train.statistics.outcome import Outcome

TEST = SequentialTest(
    evidence="margin",
    edges=np.full((2, 1), 1e-4, dtype=np.float32),
    increments=np.array([[-1.0, 2.0], [-1.0, 2.0]]),
    lower=np.full(2, -np.inf),
    upper=np.full(2, 3.0),
    final_threshold=0.0,
    answer="accurate",
    waves=(2,),
    vote_weights=np.ones(2),
)


def planted():
    """Six images whose true label is 0: (final label, flagged, base label).

    right; flagged but right; flagged and corrected; flagged and still wrong; wrong and unflagged: the attacker's
    success; wrong and unflagged again.
    """
    label = np.array([0, 0, 0, 1, 1, 2])
    flagged = np.array([False, True, True, True, False, False])
    base = np.array([0, 0, 1, 1, 1, 2])
    probabilities = np.full((6, 3), 0.2, dtype=np.float32)
    probabilities[np.arange(6), base] = 0.6
    return Verdicts(
        label=label,
        adversarial=flagged,
        base_label=base,
        probabilities=probabilities,
        label_change_rate=np.array([0, 1, 1, 0.5, 0, 0], dtype=np.float32),
        log_likelihood_ratio=np.array([-2.0, 4.0, 4.0, 3.5, -2.0, -2.0]),
        members_used=np.array([2, 2, 2, 2, 1, 1]),
        votes=np.array([[2.0, 0, 0], [1.5, 0.5, 0], [2, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]]),
        purified=np.zeros((6, 1, 1, 1), dtype=np.float32),
        reconstruction_error=np.zeros(6, dtype=np.float32),
        abstained=np.zeros(6, dtype=bool),
    )


LABELS = np.zeros(6, dtype=np.int64)


def outcome(*success, label=None):
    success = np.array(success)
    return Outcome(
        label=np.where(success, 1, 0) if label is None else np.array(label),
        flagged=np.zeros(len(success), dtype=bool),
        abstained=np.zeros(len(success), dtype=bool),
        members_used=np.ones(len(success), dtype=np.int64),
        score=np.where(success, -1.0, 1.0),
    )


def test_success_is_wrong_and_not_flagged():
    assert judge(planted(), LABELS, TEST).success.tolist() == [False, False, False, False, True, True]


def test_figures_of_six_planted_verdicts_are_those_counted_by_hand():
    figures = attack_figures(judge(planted(), LABELS, TEST), LABELS, seconds=1.0, configuration={})
    assert figures.attack_success == pytest.approx(2 / 6)
    assert figures.flagged == pytest.approx(3 / 6)
    assert figures.corrected == pytest.approx(2 / 6)
    assert figures.label_accuracy == pytest.approx(3 / 6)
    assert figures.members_used == pytest.approx(10 / 6)


def test_clean_accuracy_counts_final_labels_flagged_or_not():
    figures = clean_figures(judge(planted(), LABELS, TEST), LABELS)
    assert (figures.accuracy, figures.flagged, figures.attack_success) == pytest.approx((3 / 6, 3 / 6, 2 / 6))


def test_an_abstained_input_is_neither_the_attackers_success_nor_a_right_label():
    verdicts = dataclasses.replace(planted(), abstained=np.array([True, True, True, True, True, False]))
    outcome = judge(verdicts, LABELS, TEST)
    assert outcome.success.tolist() == [False, False, False, False, False, True]
    figures = attack_figures(outcome, LABELS, seconds=1.0, configuration={})
    assert (figures.attack_success, figures.flagged, figures.abstained) == pytest.approx((1 / 6, 3 / 6, 5 / 6))
    assert (figures.corrected, figures.label_accuracy) == (0.0, 0.0)
    clean = clean_figures(outcome, LABELS)
    assert (clean.accuracy, clean.attack_success, clean.abstained) == pytest.approx((0.0, 1 / 6, 5 / 6))
    worst = worst_case({"clean": outcome}, LABELS)
    assert (worst.robust_accuracy, worst.label_accuracy) == pytest.approx((5 / 6, 0.0))


def test_the_score_of_an_undecided_input_that_abstains_leads_below_the_clean_boundary():
    test = dataclasses.replace(
        TEST, lower=np.full(2, -1.5), final_threshold=np.inf, undecided_abstains=True, upper=np.full(2, np.inf)
    )
    nobody, four = np.zeros(6, dtype=bool), np.isin(np.arange(6), [3, 4])
    verdicts = dataclasses.replace(
        planted(),
        adversarial=nobody,
        abstained=four,
        log_likelihood_ratio=np.array([-2.0, -2.0, -2.0, 1.0, -1.0, -2.0]),
        label_change_rate=np.zeros(6, dtype=np.float32),
    )
    score = judge(verdicts, LABELS, test).score
    assert score[[3, 4]] == pytest.approx([2.5, 0.5])
    assert score[5] == -1.0


def test_the_score_leads_from_right_to_wrong_but_flagged_to_success():
    score = judge(planted(), LABELS, TEST).score
    assert score[0] > RIGHT  # right, nobody objects
    assert score[0] > score[1] > RIGHT / 2  # right, members object
    assert RIGHT / 2 > score[2] > score[3] > 0  # wrong but flagged: the evidence is all that is left
    assert (score[4:] == -1.0).all()


def test_the_worst_case_is_the_union_per_image():
    outcomes = {
        "clean": outcome(True, False, False, False),
        "pgd": outcome(False, True, False, False),
        "square": outcome(False, True, True, False),
    }
    worst = worst_case(outcomes, np.zeros(4, dtype=np.int64))
    assert worst.robust_accuracy == 0.25
    assert worst.broken_only_by == {"clean": 1, "pgd": 0, "square": 1}
    assert worst.robust_accuracy_interval == clopper_pearson(1, 4)


def test_an_image_that_is_flagged_with_a_wrong_label_is_robust_but_not_rightly_labelled():
    flagged_and_wrong = outcome(False, False, label=[1, 0])
    worst = worst_case({"pgd": flagged_and_wrong}, np.zeros(2, dtype=np.int64))
    assert (worst.robust_accuracy, worst.label_accuracy) == (1.0, 0.5)
    assert (worst.robust_accuracy_interval, worst.label_accuracy_interval) == (
        clopper_pearson(2, 2),
        clopper_pearson(1, 2),
    )


def test_the_interval_of_no_success_in_n_is_the_rule_of_three():
    low, high = clopper_pearson(0, 100)
    assert low == 0.0
    assert high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_the_interval_is_symmetric_in_success_and_failure():
    low, high = clopper_pearson(3, 10)
    other_low, other_high = clopper_pearson(7, 10)
    assert (low, high) == pytest.approx((1 - other_high, 1 - other_low))
    assert (low, high) == pytest.approx((0.0667, 0.6525), abs=5e-5)  # Clopper and Pearson 1934, the chart's value


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="0 of 0"):
        clopper_pearson(0, 0)
