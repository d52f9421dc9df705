import re

import numpy as np
import pytest
from tests.train.correlated_members import correlated_answers

from s2ap_defend.errors import RecipeError
from s2ap_defend.sequential import run_sequential_test
from s2ap_train.calibration import Calibration, Detection, Jury, calibrate

CLEAN = [0.05, 0.1, 0.15, 0.2, 0.1, 0.1]
FOOLED = [0.7, 0.6, 0.8, 0.7, 0.5, 0.7]


def test_the_opening_of_the_jury_is_asked_first_and_its_vote_is_what_evidence_is_measured_against() -> None:
    rng = np.random.default_rng(7)
    parts = (
        correlated_answers(rng, 200, CLEAN, wrong=0.05),
        correlated_answers(rng, 300, FOOLED, fooled=True),
        correlated_answers(rng, 300, CLEAN, wrong=0.05),
    )
    jury = Jury((1.0, 0.0, 1.0, 0.5, 0.0, 0.0), (2, 0, 3), "robust", await_vote=True)
    result = calibrate(*parts, Detection(min_accept=1), jury)
    assert result.order[:3].tolist() == [2, 0, 3]
    assert result.test.vote_weights[:3].tolist() == [1.0, 1.0, 0.5]
    assert (result.test.opening, result.test.await_vote, result.test.waves[0]) == (3, True, 4)
    assert result.tables.lower[:2] == result.tables.upper[:2] == (None, None)
    held_out = parts[2].reorder(result.order)
    assert np.array_equal(run_sequential_test(result.test, held_out.said).first_answer, jury.measured(parts[2]).first)


@pytest.mark.parametrize("kind", ["conformal", "weighted"])
def test_signals_are_fitted_as_members_are_and_the_boundary_counts_them(kind: str) -> None:
    rng = np.random.default_rng(3)
    clean, fooled, held_out = (
        correlated_answers(rng, 300, CLEAN),
        correlated_answers(rng, 300, FOOLED, fooled=True),
        correlated_answers(rng, 400, CLEAN),
    )
    jury = Jury((1.0,) * 6, (0, 1), signals=("jury margin", "classifier surprise"))
    test = calibrate(clean, fooled, held_out, Detection(kind=kind, min_accept=2), jury).test  # type: ignore[arg-type]
    assert [one.name for one in test.signals] == ["jury margin", "classifier surprise"]
    margin = test.signals[0]
    assert (np.diff(margin.increments) >= 0.0).all()
    assert margin.increments[0] < 0.0 < margin.increments[-1]
    if kind == "conformal":
        order = calibrate(clean, fooled, held_out, Detection(min_accept=2), jury).order
        counted = jury.measured(held_out)
        counted = counted.keep(counted.right).reorder(order)
        assert run_sequential_test(test, counted.said).adversarial.mean() <= 0.05


@pytest.mark.parametrize(
    ("opening", "answer", "message"),
    [((), "robust", "the opening is ()"), ((0, 0), "robust", "different members"), ((3,), "mixed", "from 0 to 1")],
)
def test_an_opening_that_cannot_be_is_refused(opening: tuple[int, ...], answer: str, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        Jury((1.0, 1.0), opening, answer)  # type: ignore[arg-type]


def test_members_that_are_left_out_change_nothing() -> None:
    config = Detection(min_accept=2)

    def made(kept: list[int], jury: Jury) -> Calibration:
        rng = np.random.default_rng(0)
        clean, fooled, held_out = (
            correlated_answers(rng, 200, [0.05, 0.1, 0.15, 0.2], wrong=0.05),
            correlated_answers(rng, 300, [0.7, 0.6, 0.8, 0.7], fooled=True),
            correlated_answers(rng, 300, [0.05, 0.1, 0.15, 0.2], wrong=0.05),
        )
        parts = (one.reorder(np.array(kept)) for one in (clean, fooled, held_out))
        return calibrate(*parts, config, jury, costs=[1.0, 2.0, 3.0, 4.0][: len(kept)])

    without = made([0, 1, 2, 3], Jury((1.0, 1.0, 1.0, 0.0), (0, 1), left_out=(3,)))
    never = made([0, 1, 2], Jury((1.0, 1.0, 1.0), (0, 1)))
    assert 3 not in without.order
    assert without.order.tolist() == never.order.tolist()
    assert without.tables == never.tables


def test_a_member_of_the_opening_cannot_be_left_out() -> None:
    with pytest.raises(RecipeError, match=r"of which \(1,\) are left out"):
        Jury((1.0, 1.0), (0, 1), left_out=(1,))
