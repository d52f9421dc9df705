import numpy as np
import pytest
from tests.runtime.sequential_cases import sequential_test

from s2ap_train.hardening.decision_choice.frontier import Measured
from s2ap_train.hardening.decision_choice.rules import (
    answers,
    beginning,
    better,
    chosen_answer,
    expected,
    hopeful,
    said_of,
    said_of_cost,
    variants,
)
from s2ap_train.recipe.tables import DecisionGrid, DecisionRecipe


def measured(
    clean: int, label: int, *, safe: int = 10, flagged: int = 0, cost: float = 2.0, **decision: object
) -> Measured:
    """A decision that is right on so many of ten clean images, and of ten attacked ones, where so many are safe."""
    made = DecisionRecipe.model_validate({"answer": "mixed"} | decision)
    right, alarms, kept, able = (np.arange(10) < count for count in (clean, flagged, label, safe))
    return Measured(made, sequential_test(3), right, alarms, kept, able, np.full(10, 2), cost)


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


def test_the_mean_probability_of_the_jury_alone_is_tried_with_one_power() -> None:
    grid = DecisionGrid(juror_weights=(1.0,), jury_shares=(0.9, 1.0), amplifications=(3.0, 6.0))
    mixes = [one for one in answers(DecisionRecipe(answer="robust"), grid) if one.answer == "mixed"]
    assert [(one.jury_share, one.amplification) for one in mixes] == [(0.9, 3.0), (0.9, 6.0), (1.0, 3.0)]


def test_only_a_mix_can_get_another_label_where_it_is_flagged() -> None:
    for answer, tried in (("mixed", ["vote"]), ("robust", []), ("accurate", [])):
        others = variants(DecisionRecipe(answer=answer), DecisionGrid(), "flagged_label", jurors=3)  # type: ignore[arg-type]
        assert [one.flagged_label for one in others] == tried


def test_the_most_accurate_mix_within_the_label_cost_is_taken() -> None:
    compared = [JURY, measured(8, 6, jury_share=0.7), measured(9, 5, jury_share=0.8), measured(10, 4, jury_share=0.9)]
    assert hopeful(MIXED, compared) == [0, 1, 2]
    index, why = chosen_answer(MIXED, compared)
    assert index == 2
    assert why == (
        "2 mixes stay within 10 points of the jury under attack (60.0% right and 100.0% right or flagged); the one "
        "with the largest clean accuracy is taken, 90.0% with the jury's 70.0%: 50.0% right and 100.0% right or "
        "flagged."
    )
    assert chosen_answer(MIXED, compared[:2])[1].startswith("1 mix stays within 10 points of the jury")


def test_a_mix_that_is_flagged_too_seldom_is_not_taken() -> None:
    blind = measured(10, 6, safe=7)
    assert chosen_answer(MIXED, [JURY, blind, measured(8, 6, safe=9)])[0] == 2


def test_ties_go_to_the_labels_then_to_the_jury() -> None:
    mixes = [measured(8, 5), measured(8, 6, jury_share=0.7), measured(8, 6, jury_share=0.9)]
    assert chosen_answer(MIXED, [JURY, *mixes])[0] == 3


def test_a_natural_classifier_that_the_attacker_owns_is_not_mixed_in() -> None:
    natural = measured(10, 1, jury_share=0.5)
    assert hopeful(MIXED, [natural, JURY]) == [1]
    index, why = chosen_answer(MIXED, [JURY, natural])
    assert index == 0
    assert why.startswith("No mix stays within 10 points of the jury under attack (60.0% right and ")


def test_where_the_jury_is_to_answer_the_one_that_keeps_most_labels_does() -> None:
    compared = [JURY, measured(6, 7, answer="robust", juror_weight=0.25), measured(10, 9)]
    wanted = DecisionRecipe(answer="robust")
    assert hopeful(wanted, compared) == [1]
    assert chosen_answer(wanted, [compared[1]])[0] == 0


def test_the_classifier_answers_where_the_recipe_says_so() -> None:
    wanted = DecisionRecipe(answer="accurate")
    own = measured(10, 2, answer="accurate")
    assert hopeful(wanted, [JURY, measured(8, 6), own]) == [0, 2]
    assert chosen_answer(wanted, [JURY, own])[0] == 1


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
        (measured(8, 7, safe=9, flagged=1), False),  # one label more, and a false alarm
        (measured(8, 8, safe=9, flagged=1), True),  # two labels more
        (measured(8, 9, safe=10, flagged=5, cost=1.0), False),  # five false alarms: beyond noise
        (measured(8, 6, safe=9, cost=1.0), True),  # cheaper, and nothing lost
        (measured(8, 6, safe=9), False),  # the same
        (measured(8, 7, safe=8, cost=1.0), True),  # cheaper, and gained as much as lost
        (measured(8, 7, safe=8), False),  # gained as much as lost
        (measured(7, 7, safe=10), True),  # two gained, one lost
        (measured(3, 10, safe=10, cost=1.0), False),  # five lost without attack: beyond noise
    ],
)
def test_a_variant_is_taken_if_it_has_more_in_all_and_loses_nothing_beyond_noise(
    other: Measured, expected: bool
) -> None:
    assert better(other, measured(8, 6, safe=9)) is expected


@pytest.mark.parametrize(("more", "expected"), [(4, False), (5, True)])  # p .063 and .031
def test_a_dearer_variant_must_gain_beyond_noise(more: int, expected: bool) -> None:
    assert better(measured(8, 1 + more, safe=9, cost=4.0), measured(8, 1, safe=9)) is expected


def test_the_reason_names_what_changed_and_its_figures() -> None:
    new, old = measured(8, 6, signals=("jury margin",), cost=1.5, flagged=1), measured(8, 6, safe=9, flagged=2)
    assert said_of("signals", new, old) == (
        "signals jury margin instead of none: label right 60.0% -> 60.0%, right or flagged 90.0% -> 100.0%, "
        "clean 80.0% -> 80.0%, flagged clean 20.0% -> 10.0%, cost 2 -> 1.5."
    )


def test_of_what_costs_too_much_none_is_taken() -> None:
    wanted = MIXED.model_copy(update={"max_cost": 3.0})
    dear, cheap = measured(10, 6, cost=4.0), measured(8, 5, cost=3.0)
    assert hopeful(MIXED, [JURY, dear, cheap]) == [0, 1, 2]
    assert hopeful(wanted, [JURY, dear, cheap]) == [0, 2]
    assert hopeful(wanted, [JURY, dear, measured(10, 6, cost=3.5)]) == [0, 2]  # none is cheap enough


def test_what_is_affordable_is_better_than_what_is_not() -> None:
    dear, cheap = measured(9, 9, cost=4.0, max_cost=3.0), measured(5, 5, safe=5, cost=2.0, max_cost=3.0)
    assert better(cheap, dear)
    assert not better(dear, cheap)


def test_a_limit_of_cost_begins_without_a_purifier_and_tries_the_recipes_own_policy() -> None:
    wanted = DecisionRecipe(purify="always", max_cost=3.0)
    first, grid = beginning(wanted, DecisionGrid(purify=("suspicious", "off")), purifier=True)
    assert (first.purify, grid.purify) == ("off", ("suspicious", "always"))
    assert beginning(DecisionRecipe(purify="always"), grid, purifier=True) == (DecisionRecipe(purify="always"), grid)


def test_what_more_cost_would_buy_is_said() -> None:
    taken, dear = measured(8, 5, cost=2.5, max_cost=3.0), measured(9, 7, cost=20.0, max_cost=3.0)
    assert said_of_cost(taken, [taken, dear]) == (
        "It costs 2.5 times the classifier, at most 3 were allowed. 20 would buy +20.0 points label right, +0.0 right "
        "or flagged and +10.0 clean."
    )
    assert said_of_cost(dear, [dear]) == (
        "No decision costs at most 3 times the classifier; this one, the cheapest, 20."
    )
    assert said_of_cost(measured(8, 5), []) == ""


def test_every_step_of_what_more_cost_buys_is_said_and_nothing_that_buys_less() -> None:
    taken = measured(8, 3, cost=2.5, max_cost=3.0)
    dearer = [measured(8, right, cost=cost, max_cost=3.0) for right, cost in ((5, 8.0), (4, 6.0), (4, 7.0), (5, 20.0))]
    assert said_of_cost(taken, [taken, *dearer]) == (
        "It costs 2.5 times the classifier, at most 3 were allowed. 6 would buy +10.0 points label right, +0.0 right "
        "or flagged and +0.0 clean. 8 would buy +20.0 points label right, +0.0 right or flagged and +0.0 clean."
    )


def test_without_a_purifier_nothing_is_purified_and_no_policy_is_tried() -> None:
    first, grid = beginning(DecisionRecipe(purify="always", max_cost=3.0), DecisionGrid(), purifier=False)
    assert (first.purify, grid.purify) == ("off", ())
