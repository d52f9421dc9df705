from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.sequential_cases import said, sequential_test

from s2ap_train.hardening.decision_choice.frontier import Measured, chosen_mix, clean_cost, frontier_row, measure
from s2ap_train.recipe.tables import DecisionRecipe


def measured(clean: int, label: int, share: float = 0.8) -> Measured:
    """A decision that is right on so many of ten clean and of ten attacked images."""
    decision = DecisionRecipe(answer="mixed", jury_share=share)
    right, kept = (np.arange(10) < count for count in (clean, label))
    return Measured(decision, sequential_test(3), right, ~right, kept, kept, np.full(10, 2))


def test_a_decision_is_right_where_every_attack_leaves_it_right() -> None:
    # Clean all say 0. The first attack makes both members say 1 on image 1, the second one of them on image 2 (a tie,
    # and a flag): two disagreements reach the alarm at 2 nats, one does not.
    test = sequential_test(2, answer="accurate", upper=np.full(2, 1.0))
    clean = said([[0, 0, 0]] * 2, [0, 0, 0])
    both = said([[0, 1, 0]] * 2, [0, 1, 0])
    one = said([[0, 0, 1], [0, 0, 0]], [0, 0, 0])
    found = measure(DecisionRecipe(answer="accurate"), test, clean, [both, one], np.zeros(3, dtype=np.int64))
    assert found.clean_right.all()
    assert found.label_right.tolist() == [True, False, True]  # flagged and corrected, ties to the lower class
    assert found.robust_right.tolist() == [True, False, True]
    assert found.members_used.tolist() == [2, 2, 2]


def test_the_most_accurate_mix_within_the_label_cost_is_taken() -> None:
    jury = measured(7, 6)
    index, why = chosen_mix(jury, [measured(8, 6), measured(9, 5), measured(10, 4)], label_cost=0.1)
    assert index == 1
    assert why == (
        "Of 3 mixes, 2 keep their labels under attack within 10 points of the jury's 60.0%; this one has the largest "
        "clean accuracy of them, 90.0% with the jury's 70.0%, and keeps 50.0%."
    )


def test_ties_go_to_the_labels_then_to_the_jury() -> None:
    mixes = [measured(8, 5), measured(8, 6, 0.7), measured(8, 6, 0.9)]
    assert chosen_mix(measured(7, 6), mixes, label_cost=0.5)[0] == 2


def test_a_natural_classifier_that_the_attacker_owns_is_not_mixed_in() -> None:
    index, why = chosen_mix(measured(7, 6), [measured(10, 1, 0.5)], label_cost=0.01)
    assert index is None
    assert why.startswith("No mix keeps its labels within 1 points of the jury's 60.0%")


def test_the_cost_of_a_clean_image_counts_whole_waves() -> None:
    # Waves of 2 and 1: an image that asks one member pays for two. Half of the images pay 10 + 10, half 10 + 10 + 30.
    test = sequential_test(3, waves=(2, 1))
    cost = clean_cost(test, np.array([1, 3]), np.array([10.0, 10.0, 30.0]), classifier=100.0, before=50.0)
    assert cost == pytest.approx((50 + 100 + 20 + 15) / 100)


def test_a_row_of_the_manifest_says_when_clean_may_be_decided() -> None:
    one = measured(9, 6)
    late = replace(one, test=sequential_test(3, lower=np.array([-np.inf, -2.0, -2.0])))
    row = frontier_row(late, cost=2.0)
    assert (row.min_accept, row.clean_accuracy, row.label_accuracy, row.cost) == (2, 0.9, 0.6, 2.0)
    never = replace(one, test=sequential_test(3, lower=np.full(3, -np.inf)))
    assert frontier_row(never, cost=2.0).min_accept == 3
