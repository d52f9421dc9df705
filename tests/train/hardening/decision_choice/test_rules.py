import numpy as np
import pytest
from tests.runtime.sequential_cases import sequential_test

from s2ap_train.hardening.decision_choice.frontier import Measured
from s2ap_train.hardening.decision_choice.rules import answers, better, chosen_answer, expected, said_of, variants
from s2ap_train.recipe.tables import DecisionGrid, DecisionRecipe


def measured(clean: int, label: int, *, safe: int = 10, cost: float = 2.0, **decision: object) -> Measured:
    """A decision that is right on so many of ten clean images, and of ten attacked ones, where so many are safe."""
    made = DecisionRecipe.model_validate({"answer": "mixed"} | decision)
    right, kept, able = (np.arange(10) < count for count in (clean, label, safe))
    return Measured(made, sequential_test(3), right, ~right, kept, able, np.full(10, 2), cost)


JURY = measured(7, 6, answer="robust")
MIXED = DecisionRecipe(answer="mixed", label_cost=0.1)


def test_every_answer_is_compared_with_every_weight_of_the_jurors() -> None:
    grid = DecisionGrid(juror_weights=(0.25, 1.0), jury_shares=(0.7, 0.9), amplifications=(3.0,))
    tried = answers(DecisionRecipe(answer="robust", juror_weight=0.5), grid)
    found = [(one.answer, one.juror_weight, one.jury_share) for one in tried]
    assert found == [
        ("robust", 0.25, 0.8),
        ("mixed", 0.25, 0.7),
        ("mixed", 0.25, 0.9),
        ("robust", 1.0, 0.8),
        ("mixed", 1.0, 0.7),
        ("mixed", 1.0, 0.9),
        ("robust", 0.5, 0.8),
        ("accurate", 0.5, 0.8),
    ]


def test_the_most_accurate_mix_within_the_label_cost_is_taken() -> None:
    compared = [JURY, measured(8, 6, jury_share=0.7), measured(9, 5, jury_share=0.8), measured(10, 4, jury_share=0.9)]
    index, why = chosen_answer(MIXED, compared)
    assert index == 2
    assert why == (
        "2 of 3 mixes keep their labels under attack within 10 points of the jury's 60.0%; the one with the largest "
        "clean accuracy is taken, 90.0% with the jury's 70.0%; it keeps 50.0%."
    )


def test_ties_go_to_the_labels_then_to_the_jury() -> None:
    mixes = [measured(8, 5), measured(8, 6, jury_share=0.7), measured(8, 6, jury_share=0.9)]
    assert chosen_answer(MIXED, [JURY, *mixes])[0] == 3


def test_a_natural_classifier_that_the_attacker_owns_is_not_mixed_in() -> None:
    index, why = chosen_answer(MIXED, [measured(10, 1, jury_share=0.5), JURY])
    assert index == 1
    assert why.startswith("No mix keeps its labels within 10 points of the jury's 60.0%")


def test_where_the_jury_is_to_answer_the_one_that_keeps_most_labels_does() -> None:
    compared = [JURY, measured(6, 7, answer="robust", juror_weight=0.25), measured(10, 9)]
    assert chosen_answer(DecisionRecipe(answer="robust"), compared)[0] == 1


def test_an_opening_of_more_jurors_than_there_are_is_not_tried() -> None:
    tried = variants(DecisionRecipe(opening=2), DecisionGrid(opening=(1, 2, 3, 4)), "opening", jurors=3)
    assert [one.opening for one in tried] == [1, 3]


def test_the_recipes_own_value_is_not_tried_again() -> None:
    grid = DecisionGrid(signals=((), ("jury margin",)))
    assert [one.signals for one in variants(DecisionRecipe(), grid, "signals", jurors=3)] == [("jury margin",)]


def test_variants_that_no_file_can_have_are_not_tried() -> None:
    grid = DecisionGrid(jurors_see=("purified",), signals=(("reconstruction error",), ("jury margin",)))
    suspicious = DecisionRecipe(purify="suspicious")
    assert variants(suspicious, grid, "jurors_see", jurors=3) == ()
    assert [one.signals for one in variants(suspicious, grid, "signals", jurors=3)] == [("jury margin",)]
    (seeing,) = variants(DecisionRecipe(purify="always"), grid, "jurors_see", jurors=3)
    assert variants(seeing, DecisionGrid(purify=("suspicious",)), "purify", jurors=3) == ()


def test_what_a_search_attacks_if_nothing_is_better_is_known_before_it() -> None:
    grid = DecisionGrid(
        juror_weights=(1.0,), jury_shares=(0.9,), amplifications=(3.0,), opening=(1,), jurors_see=(), sensors_see=(),
        purify=(), signals=(),
    )  # fmt: skip
    tried = [(one.answer, one.opening, goal) for one, goal in expected(DecisionRecipe(answer="robust"), grid, jurors=3)]
    assert tried == [
        ("robust", 2, "wrong label"),
        ("mixed", 2, "wrong label"),
        ("accurate", 2, "wrong label"),
        ("robust", 2, "mislead"),
        ("robust", 1, "wrong label"),
        ("robust", 1, "mislead"),
    ]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (measured(8, 7, safe=9), True),  # one label more
        (measured(8, 6, safe=10), True),  # one more is right or flagged
        (measured(9, 6, safe=9), True),  # one more is right without attack
        (measured(8, 6, safe=9, cost=1.0), True),  # cheaper, and nothing lost
        (measured(8, 6, safe=9), False),  # the same
        (measured(8, 7, safe=8, cost=1.0), False),  # fewer are right or flagged
        (measured(9, 5, safe=10, cost=1.0), False),  # fewer labels
        (measured(7, 7, safe=10, cost=1.0), False),  # less accurate without attack
    ],
)
def test_a_variant_is_taken_only_if_it_loses_nothing(other: Measured, expected: bool) -> None:
    assert better(other, measured(8, 6, safe=9)) is expected


def test_the_reason_names_what_changed_and_its_figures() -> None:
    new, old = measured(8, 6, signals=("jury margin",), cost=1.5), measured(8, 6, safe=9)
    assert said_of("signals", new, old) == (
        "signals jury margin instead of none: label right 60.0% -> 60.0%, right or flagged 90.0% -> 100.0%, "
        "clean 80.0% -> 80.0%, cost 2 -> 1.5."
    )
