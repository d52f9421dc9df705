"""What a calibration gives where its answers do not allow what was asked: a weaker test, and a sentence about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.runtime.sequential_cases import sequential_test
from tests.train.correlated_members import correlated_answers, voted

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import Signal, run_sequential_test
from s2ap_train.calibration import Answers, Calibration, Detection, Jury, Weakness, calibrate
from s2ap_train.calibration.boundaries import check_alarm_possible, check_decidable

CLEAN = [0.05, 0.1, 0.15, 0.2]
FOOLED = [0.7, 0.6, 0.8, 0.7]


def answers(count: int, rates: list[float], *, fooled: bool = False) -> Answers:
    return correlated_answers(np.random.default_rng(count + fooled), count, rates, fooled=fooled)


def weakened(
    clean: Answers, attacked: Answers, held_out: Answers, config: Detection | None = None
) -> tuple[Calibration, Weakness]:
    """The calibration, and the only thing that is weak in it; asked to be strict, the same is refused."""
    found: list[Weakness] = []
    config, jury = config or Detection(min_accept=2), Jury.behind_classifier(clean.members)
    made = calibrate(clean, attacked, held_out, config, jury, weak=found.append)
    (one,) = found
    with pytest.raises(RecipeError) as refused:
        calibrate(clean, attacked, held_out, config, jury)
    assert str(refused.value) == f"{one.found}; {one.cure}"
    assert one.in_words == f"{one.found}, so {one.instead}; {one.cure}"
    return made, one


def flags_nothing(made: Calibration, inputs: Answers) -> bool:
    outcome = run_sequential_test(made.test, inputs.reorder(made.order).said)
    assert not outcome.abstained.any()
    return not outcome.adversarial.any()


@pytest.mark.parametrize("kind", ["conformal", "graded", "weighted", "wald", "ville", "paper"])
@pytest.mark.parametrize(("right", "wrong"), [(200, 0), (0, 200), (19, 19), (0, 0)])
def test_without_enough_attacked_or_right_inputs_nothing_is_flagged_under_every_kind(
    kind: str, right: int, wrong: int
) -> None:
    truncation = None if kind == "conformal" else "adversarial"
    config = Detection(kind=kind, min_accept=2, truncation=truncation)  # type: ignore[arg-type]
    fooled = answers(200, FOOLED, fooled=True)
    made, weakness = weakened(
        answers(200, CLEAN).keep(np.arange(right)), fooled.keep(np.arange(wrong)), answers(200, CLEAN), config
    )
    assert (weakness.part, weakness.instead) == ("evidence", "no evidence was fitted and nothing is flagged")
    assert f"got {right} and {wrong}" in weakness.found
    assert flags_nothing(made, fooled)
    assert made.tables.kind == "none: no evidence could be fitted, nothing is flagged"
    assert made.tables.calibration.expected_false_alarm_rate is None
    outcome = run_sequential_test(made.test, fooled.reorder(made.order).said)
    assert (outcome.members_used == 2).all()


def test_a_test_without_evidence_that_would_abstain_answers() -> None:
    config = Detection(min_accept=2, truncation="abstain", evidence="all")
    made, _ = weakened(answers(200, CLEAN), answers(200, CLEAN), answers(200, CLEAN), config)
    assert flags_nothing(made, answers(100, FOOLED))


def test_an_alpha_that_needs_more_images_is_raised_to_what_these_can_keep() -> None:
    made, weakness = weakened(answers(200, CLEAN), answers(200, FOOLED, fooled=True), answers(9, CLEAN))
    assert weakness.part == "boundary"
    assert weakness.found.startswith("a false-alarm rate of 0.05 needs 19 clean calibration inputs or more, got 9")
    assert weakness.instead == "alpha is 0.1"
    assert made.tables.alpha == 0.1  # 1 / (9 + 1)
    assert made.tables.calibration.expected_false_alarm_rate == pytest.approx(0.1)


@pytest.mark.parametrize(("count", "beta"), [(3, 0.05), (0, 0.05), (4, 0.85)])
def test_an_alpha_above_a_fifth_is_not_taken_unasked_and_nothing_is_flagged(count: int, beta: float) -> None:
    held_out = answers(10, CLEAN)
    held_out = replace(held_out, label=np.where(np.arange(10) < count, held_out.first, held_out.first + 1))
    config = Detection(min_accept=2, beta=beta)
    made, weakness = weakened(answers(200, CLEAN), answers(200, FOOLED, fooled=True), held_out, config)
    assert weakness.instead == "nothing is flagged"
    assert flags_nothing(made, answers(300, FOOLED, fooled=True))
    assert made.tables.calibration.samples == 0


def test_where_clean_inputs_reach_all_that_members_can_say_nothing_is_flagged() -> None:
    clean, fooled = (voted([[j < k for j in range(39)]] * 2, right=right) for k, right in ((1, True), (29, False)))
    held_out = voted([[j < 30 for j in range(60)]] * 2)
    made, weakness = weakened(clean, fooled, held_out, Detection(min_accept=1, bins=2))
    assert weakness.part == "boundary"
    assert "2 members can say at most" in weakness.found
    assert "reach (50.0%)" in weakness.found
    assert flags_nothing(made, fooled)


def test_a_test_of_shared_rates_that_are_none_becomes_conformal() -> None:
    clean, fooled = voted([[j < 29 for j in range(39)]] * 2), voted([[j < 20 for j in range(39)]] * 2, right=False)
    found: list[Weakness] = []
    config = Detection(kind="wald", truncation="sign", min_accept=1, evidence="all")
    made = calibrate(clean, fooled, answers(60, CLEAN[:2]), config, Jury.behind_classifier(2), weak=found.append)
    assert found[0].instead == "the test is of kind 'conformal' instead of 'wald'"
    assert found[0].cure == "choose other members or kind 'conformal'"
    assert made.tables.kind.startswith("conformal")
    never = voted([[False] * 39] * 2)
    found.clear()
    calibrate(never, fooled, never, Detection(kind="paper"), Jury.behind_classifier(2), weak=found.append)
    assert "the paper's levels 0 and 0" in found[0].found
    assert found[0].cure == "choose another test or more diverse members"


def test_a_boundary_that_two_members_cannot_reach_stays_and_all_are_asked() -> None:
    clean, fooled = (voted([[j < k for j in range(39)]] * 2, right=right) for k, right in ((2, True), (26, False)))
    made, weakness = weakened(clean, fooled, answers(60, CLEAN[:2]), Detection(kind="wald", min_accept=1))
    assert weakness.found.startswith("this test can never decide 'clean': 2 members say")
    assert weakness.instead == "an input that is not flagged is asked of all members"
    outcome = run_sequential_test(made.test, clean.reorder(made.order).said)
    assert (outcome.members_used[~outcome.adversarial] == 2).all()


def test_the_evidence_of_signals_counts_where_a_boundary_is_judged() -> None:
    # two members say two nats at most, the signal one more
    test = sequential_test(2, lower=np.full(2, -3.0), upper=np.full(2, 3.0))
    says = Signal("jury margin", np.zeros(1, dtype=np.float32), np.array([-1.0, 1.0]))
    with pytest.raises(RecipeError, match="never decide 'clean': 2 members say"):
        check_decidable(test)
    with pytest.raises(RecipeError, match="no boundary at that false-alarm rate"):
        check_alarm_possible(test, np.full(10, 2.0), 0.05)
    check_decidable(replace(test, signals=(says,)))
    check_alarm_possible(replace(test, signals=(says,)), np.full(10, 2.0), 0.05)
