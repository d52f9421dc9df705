from dataclasses import replace

import numpy as np
from tests.runtime.sequential_cases import said, sequential_test

from s2ap_train.calibration.flops import StageFlops
from s2ap_train.hardening.decision_choice.frontier import frontier_row, measure
from s2ap_train.recipe.tables import DecisionRecipe

FLOPS = StageFlops(purifier=300, classifier=100, members=np.array([20, 30]))


def test_a_decision_is_right_where_every_attack_leaves_it_right() -> None:
    # Clean all say 0. The first attack makes both members say 1 on image 1, the second one of them on image 2 (a tie,
    # and a flag): two disagreements reach the alarm at 2 nats, one does not.
    test = sequential_test(2, answer="accurate", upper=np.full(2, 1.0))
    clean = said([[0, 0, 0]] * 2, [0, 0, 0])
    both = said([[0, 1, 0]] * 2, [0, 1, 0])
    one = said([[0, 0, 1], [0, 0, 0]], [0, 0, 0])
    found = measure(DecisionRecipe(answer="accurate"), test, clean, [both, one], np.zeros(3, dtype=np.int64), FLOPS)
    assert found.clean_right.all()
    assert found.label_right.tolist() == [True, False, True]  # flagged and corrected, ties to the lower class
    assert found.robust_right.tolist() == [True, False, True]
    assert found.members_used.tolist() == [2, 2, 2]
    assert found.cost == (300 + 100 + 50) / 100


def test_a_row_of_the_manifest_says_when_clean_may_be_decided() -> None:
    test, clean = sequential_test(2, answer="accurate"), said([[0, 1]] * 2, [0, 0])
    decision = DecisionRecipe(answer="accurate", signals=("jury margin",), opening=1)
    one = measure(decision, test, clean, [], np.zeros(2, dtype=np.int64), FLOPS)
    row = frontier_row(replace(one, test=sequential_test(2, lower=np.array([-np.inf, -2.0]))))
    assert (row.min_accept, row.clean_accuracy, row.clean_flagged, row.signals) == (2, 0.5, 0.5, ("jury margin",))
    never = replace(one, test=sequential_test(2, lower=np.full(2, -np.inf)))
    assert frontier_row(never).min_accept == 2
