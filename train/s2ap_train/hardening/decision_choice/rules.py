"""Which decisions are compared, and which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2ap_train.adaptive.goals import Goal
from s2ap_train.hardening.decision_choice.frontier import Measured
from s2ap_train.recipe.tables import DecisionGrid, DecisionRecipe

__all__ = ["GOALS", "STEPS", "answers", "better", "chosen_answer", "expected", "said_of", "variants"]

GOALS: tuple[Goal, ...] = ("wrong label", "mislead")
"""What a decision is attacked for that is compared with the one that was taken."""

STEPS = ("opening", "jurors_see", "sensors_see", "purify", "signals")
"""What is chosen after the answer, in this order."""


def answers(decision: DecisionRecipe, grid: DecisionGrid) -> tuple[DecisionRecipe, ...]:
    """The jury and every mix of the grid, with each weight of the jurors, the recipe's own, and the classifier."""
    mixes: list[dict[str, Any]] = [
        {"answer": "mixed", "jury_share": share, "amplification": power}
        for share in grid.jury_shares
        for power in grid.amplifications
    ]
    tried = [one | {"juror_weight": weight} for weight in grid.juror_weights for one in ({"answer": "robust"}, *mixes)]
    tried += [{}, {"answer": "accurate"}]
    return tuple(dict.fromkeys(decision.model_copy(update=one) for one in tried))


def variants(decision: DecisionRecipe, grid: DecisionGrid, step: str, *, jurors: int) -> tuple[DecisionRecipe, ...]:
    """The decision with every other value that the grid lists for one step, where a file can be wired so.

    Args:
        decision: What was taken so far.
        grid: The values.
        step: One of `STEPS`.
        jurors: How many there are; an opening of more is none.
    """
    values = [one for one in getattr(grid, step) if step != "opening" or one <= jurors]
    other = (decision.model_copy(update={step: one}) for one in values)
    return tuple(one for one in dict.fromkeys(other) if one != decision and one.contradiction is None)


def expected(decision: DecisionRecipe, grid: DecisionGrid, *, jurors: int) -> list[tuple[DecisionRecipe, Goal]]:
    """What is attacked for what, if the recipe's own decision is never beaten: about what a search will attack.

    Arguments as for `variants`; the first juror alone, which is attacked as well, is not among them.
    """
    others = [one for step in STEPS for one in variants(decision, grid, step, jurors=jurors)]
    compared: list[tuple[DecisionRecipe, Goal]] = [(one, "wrong label") for one in answers(decision, grid)]
    return [*compared, (decision, "mislead"), *((one, goal) for one in others for goal in GOALS)]


def chosen_answer(wanted: DecisionRecipe, measured: Sequence[Measured]) -> tuple[int, str]:
    """(which decision answers, why): the recipe says who, the attack with which numbers.

    Of juries the one that keeps most labels; of mixes the one with the largest clean accuracy among those whose label
    accuracy under attack is within `label_cost` of that jury's. Ties go to the larger label accuracy, then to the
    larger share of the jury.

    Args:
        wanted: The recipe's.
        measured: What `answers` gave, each attacked for a wrong label.
    """
    juries = [i for i, one in enumerate(measured) if one.decision.answer == "robust"]
    jury = max(juries, key=lambda i: (measured[i].label_right.mean(), measured[i].clean_right.mean()))
    kept, clean = float(measured[jury].label_right.mean()), float(measured[jury].clean_right.mean())
    if wanted.answer == "robust":
        return jury, (
            f"The jury, of {len(juries)}, that keeps the most labels under attack, {kept:.1%}, with {clean:.1%} right "
            "without attack."
        )
    if wanted.answer == "accurate":
        return [one.decision for one in measured].index(wanted), (
            "The recipe says so: the classifier answers what is not flagged."
        )
    cost, mixes = 100 * wanted.label_cost, [i for i, one in enumerate(measured) if one.decision.answer == "mixed"]
    able = [i for i in mixes if float(measured[i].label_right.mean()) >= kept - wanted.label_cost - 1e-12]
    if not able:
        return jury, (
            f"No mix keeps its labels within {cost:g} points of the jury's {kept:.1%} under attack, so the "
            "jury answers."
        )

    def worth(i: int) -> tuple[float, float, float]:
        one = measured[i]
        return float(one.clean_right.mean()), float(one.label_right.mean()), one.decision.jury_share

    best = max(able, key=worth)
    return best, (
        f"{len(able)} of {len(mixes)} mixes keep their labels under attack within {cost:g} points of the jury's "
        f"{kept:.1%}; the one with the largest clean accuracy is taken, {worth(best)[0]:.1%} with the jury's "
        f"{clean:.1%}; it keeps {worth(best)[1]:.1%}."
    )


def better(one: Measured, other: Measured) -> bool:
    """Whether a decision is better than another on the same images.

    It keeps no fewer labels under attack, no fewer right or flagged, and is no less accurate without attack; and it
    gains in one of the three, or equals all and costs less.
    """
    gains = [
        int(getattr(one, name).sum()) - int(getattr(other, name).sum())
        for name in ("label_right", "robust_right", "clean_right")
    ]
    return min(gains) >= 0 and (max(gains) > 0 or one.cost < other.cost)


def said_of(step: str, one: Measured, other: Measured) -> str:
    """Why a decision is taken instead of another, in a sentence."""
    value, before = (_in_words(getattr(decision, step)) for decision in (one.decision, other.decision))
    figures = ", ".join(
        f"{name} {getattr(other, key).mean():.1%} -> {getattr(one, key).mean():.1%}"
        for name, key in (
            ("label right", "label_right"),
            ("right or flagged", "robust_right"),
            ("clean", "clean_right"),
        )
    )
    return f"{step} {value} instead of {before}: {figures}, cost {other.cost:.3g} -> {one.cost:.3g}."


def _in_words(value: object) -> str:
    return (" + ".join(value) or "none") if isinstance(value, tuple) else str(value)
