"""From the settings of a decision to what each member sees and to the jury."""

import pytest

from s2ap_train.hardening.decision_choice.wiring import wiring
from s2ap_train.recipe.tables import DecisionRecipe

ROLES = ("juror", "sensor", "juror", "sensor")


@pytest.mark.parametrize("sees", ["raw", "purified"])
def test_jurors_vote_and_sensors_see_what_the_decision_says(sees: str) -> None:
    eyes, jury = wiring(DecisionRecipe(sensors_see=sees, juror_weight=0.25, opening=2), ROLES)  # type: ignore[arg-type]
    assert eyes == ("raw", sees, "raw", sees)
    assert jury.vote_weights == (1.0, 0.0, 0.25, 0.0)
    assert (jury.opening, jury.left_out) == ((0, 2), ())


@pytest.mark.parametrize(
    ("answer", "label", "correction"),
    [("mixed", "answer", "keep"), ("mixed", "vote", "correct"), ("robust", "answer", "correct")],
)
def test_a_flagged_mix_keeps_its_answer_or_gets_the_vote(answer: str, label: str, correction: str) -> None:
    decision = DecisionRecipe(answer=answer, flagged_label=label)  # type: ignore[arg-type]
    assert wiring(decision, ROLES)[1].correction == correction


def test_sensors_that_see_nothing_are_left_out() -> None:
    eyes, jury = wiring(DecisionRecipe(sensors_see="nothing"), ROLES)
    assert (jury.left_out, jury.asked) == ((1, 3), [0, 2])
    assert eyes == ("raw",) * 4
