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


def test_sensors_that_see_nothing_are_left_out() -> None:
    eyes, jury = wiring(DecisionRecipe(sensors_see="nothing"), ROLES)
    assert (jury.left_out, jury.asked) == ((1, 3), [0, 2])
    assert eyes == ("raw",) * 4
