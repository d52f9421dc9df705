"""How long attacks are forecast to take: by the descents of each plan, less what is stored."""

import pytest
from tests.train.few_images import cut_splits

from s2ap_train.data import Splits
from s2ap_train.hardening.attack_forecast import Gradients, StoredAttacks, attack_phases
from s2ap_train.recipe import Recipe, load_recipe

ONE = Gradients(classifier=1.0, members=3.0, purifier=10.0)
GRID = "jury_shares=[0.8], amplifications=[3.0], juror_weights=[1.0], jurors_see=[], sensors_see=[], signals=[]"


def recipe(*changes: str, more: str = "opening=[], purify=[]") -> Recipe:
    grid = f"decision_choice={{samples=10, steps=10, targets=1, {GRID}, {more}}}"
    return load_recipe("digits", (grid, 'decision={answer="robust"}', "evaluation.samples=10", *changes))


@pytest.fixture(scope="module")
def splits() -> Splits:
    return cut_splits((100, 100), validation=10, fit=40, calibration=40, test=20)


def seconds(made: Recipe, splits: Splits, stored: StoredAttacks | None = None) -> dict[str, float]:
    return {one.name: one.seconds for one in attack_phases(made, splits, ONE, stored or StoredAttacks())}


def test_decisions_take_their_descents_of_the_images_that_still_stand(splits: Splits) -> None:
    # gradients: 4 s past the purifier, 14 s through it. Asking the decision costs .15 of the latter a descent's step.
    def attack(past: int, through: int, inner: float, standing: float) -> float:
        return 10 * 10 * standing * (past * 4.0 + through * inner + 0.15 * (past + through) * inner)

    expected = [
        attack(3, 3, 4.0, 0.7),  # the first juror alone, nothing purified
        attack(3, 3, 14.0, 0.7),  # the jury
        attack(3, 2, 14.0, 0.7),  # a mix, which keeps its answer: there is no vote to turn
        attack(3, 4, 14.0, 0.1),  # the classifier, which falls at once
        attack(2, 4, 14.0, 0.7),  # the jury, misled: nothing accepts early without a clean boundary
    ]
    found = seconds(recipe(), splits)["decisions under attack"]
    assert found == pytest.approx(sum(expected))
    for done in range(1, 6):
        left = seconds(recipe(), splits, StoredAttacks(decisions=done))["decisions under attack"]
        assert left == pytest.approx(sum(expected[done:]))


def test_more_that_is_compared_is_both_goals_more(splits: Splits) -> None:
    base, more = (
        seconds(recipe(more=grid), splits)["decisions under attack"]
        for grid in ("opening=[], purify=[]", 'opening=[], purify=["always", "off"]')
    )
    off = 10 * 10 * 0.7 * ((6 + 0.15 * 6) * 4.0 + (6 + 0.15 * 6) * 4.0)
    assert more == pytest.approx(base + off)


def test_what_is_stored_of_the_fitting_attacks_is_not_forecast_again(splits: Splits) -> None:
    whole, half, none = (
        seconds(recipe(), splits, StoredAttacks(fitting=count))["fitting attacks"] for count in (0, 3, 6)
    )
    assert (half, none) == (pytest.approx(whole / 2), 0.0)


def test_without_a_purifier_nothing_is_forecast_through_it(splits: Splits) -> None:
    off = recipe("purifier.steps=0")
    assert seconds(off, splits)["decisions under attack"] < seconds(recipe(), splits)["decisions under attack"] / 2
