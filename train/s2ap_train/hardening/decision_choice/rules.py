"""Which decisions are compared, and which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2ap_train.adaptive.goals import Goal
from s2ap_train.hardening.decision_choice.frontier import Measured
from s2ap_train.recipe.tables import DecisionGrid, DecisionRecipe
from s2ap_train.statistics.paired import mcnemar

__all__ = [
    "GOALS",
    "JURY_ANSWERS",
    "STEPS",
    "answers",
    "beginning",
    "better",
    "chosen_answer",
    "expected",
    "hopeful",
    "said_of",
    "said_of_cost",
    "variants",
]

GOALS: tuple[Goal, ...] = ("wrong label", "mislead")
"""What a decision is attacked for that is compared with the one that was taken."""

STEPS = ("opening", "jurors_see", "sensors_see", "purify", "signals", "flagged_label")
"""What is chosen after the answer, in this order."""
JURY_ANSWERS = ", so the jury answers."
"""How the reason ends where no mix may."""
_DEARER = 1.1  # a decision that costs more than this many times the other's must gain beyond noise
_NOISE = 0.05  # p-value below which it does


def answers(decision: DecisionRecipe, grid: DecisionGrid) -> tuple[DecisionRecipe, ...]:
    """The jury and every mix of the grid, with each weight of the jurors, the recipe's own, and the classifier.

    The jury's mean probability alone answers the same whatever its power.
    """
    mixes: list[dict[str, Any]] = [
        {"answer": "mixed", "jury_share": share, "amplification": power}
        for share in grid.jury_shares
        for power in (grid.amplifications if share < 1.0 else grid.amplifications[:1])
    ]
    tried = [one | {"juror_weight": weight} for weight in grid.juror_weights for one in ({"answer": "robust"}, *mixes)]
    tried += [{}, {"answer": "accurate"}]
    return tuple(dict.fromkeys(decision.model_copy(update=one) for one in tried))


def beginning(decision: DecisionRecipe, grid: DecisionGrid, *, purifier: bool) -> tuple[DecisionRecipe, DecisionGrid]:
    """(the decision that the search begins with, what it tries).

    Where there is no purifier nothing is purified. Where `max_cost` is given nothing is at first, and the recipe's own
    policy is tried: it is taken only where it is affordable and gains beyond noise.

    Args:
        decision: The recipe's.
        grid: The recipe's.
        purifier: Whether the recipe has one.
    """
    if not purifier:
        return decision.model_copy(update={"purify": "off"}), grid.model_copy(update={"purify": ()})
    if decision.max_cost is None or decision.purify == "off":
        return decision, grid
    tried = tuple(dict.fromkeys((*(one for one in grid.purify if one != "off"), decision.purify)))
    return decision.model_copy(update={"purify": "off"}), grid.model_copy(update={"purify": tried})


def variants(decision: DecisionRecipe, grid: DecisionGrid, step: str, *, jurors: int) -> tuple[DecisionRecipe, ...]:
    """The decision with every other value that the grid lists for one step, where a file can be wired so.

    Args:
        decision: What was taken so far.
        grid: The values.
        step: One of `STEPS`.
        jurors: How many there are; an opening of more is none.
    """
    values = [one for one in getattr(grid, step) if step != "opening" or one <= jurors]
    if step == "flagged_label" and decision.answer != "mixed":
        return ()
    other = (decision.model_copy(update={step: one}) for one in values)
    return tuple(one for one in dict.fromkeys(other) if one != decision and one.contradiction is None)


def expected(decision: DecisionRecipe, grid: DecisionGrid, *, jurors: int) -> list[tuple[DecisionRecipe, Goal]]:
    """What is attacked for what, if every mix is as good as the jury and the recipe's own decision is never beaten.

    A search attacks at most about that. Arguments as for `variants`; the first juror alone, which is attacked as well,
    is not among them.
    """
    others = [one for step in STEPS for one in variants(decision, grid, step, jurors=jurors)]
    compared = answers(decision, grid)
    jury = next(one for one in compared if one.answer == "robust")
    second = {"robust": [], "mixed": [one for one in compared if one.answer == "mixed"], "accurate": [decision]}
    return [
        *((one, GOALS[0]) for one in compared),
        *((one, GOALS[1]) for one in (jury, *second[decision.answer])),
        *((one, goal) for one in others for goal in GOALS),
    ]


def hopeful(wanted: DecisionRecipe, measured: Sequence[Measured]) -> list[int]:
    """Which decisions may still answer, once each was attacked for a wrong label; the best jury is the first.

    These are attacked for an unflagged wrong answer as well before one is chosen.

    Args:
        wanted: The recipe's.
        measured: What `answers` gave.
    """
    jury = _best_jury(wanted, measured)
    if wanted.answer == "robust":
        return [jury]
    if wanted.answer == "accurate":
        return [jury, [one.decision for one in measured].index(wanted)]
    mixes = _affordable([i for i, one in enumerate(measured) if one.decision.answer == "mixed"], measured, wanted)
    return [jury, *(i for i in mixes if _as_good(measured[i], measured[jury], wanted.label_cost))]


def chosen_answer(wanted: DecisionRecipe, measured: Sequence[Measured]) -> tuple[int, str]:
    """(which decision answers, why): the recipe says who, the attack with which numbers.

    Of mixes the one with the largest clean accuracy among those that, under attack, are right as often as the jury, and
    right or flagged as often, within `label_cost`. Ties go to the larger label accuracy, then to the larger share of
    the jury.

    Args:
        wanted: The recipe's.
        measured: The `hopeful` decisions, attacked for both goals; the jury is the first.
    """
    jury, *others = measured
    figures = f"{jury.label_right.mean():.1%} right and {jury.robust_right.mean():.1%} right or flagged"
    if wanted.answer == "robust":
        return 0, (
            f"The jury with the most labels right under attack: {figures}, with {jury.clean_right.mean():.1%} right "
            "without attack."
        )
    if wanted.answer == "accurate":
        return 1, "The recipe says so: the classifier answers what is not flagged."
    allowed = f"{100 * wanted.label_cost:g} point{'' if wanted.label_cost == 0.01 else 's'}"
    able = [i for i, one in enumerate(others, start=1) if _as_good(one, jury, wanted.label_cost)]
    if not able:
        return 0, f"No mix stays within {allowed} of the jury under attack ({figures}){JURY_ANSWERS}"

    def worth(i: int) -> tuple[float, float, float]:
        one = measured[i]
        return float(one.clean_right.mean()), float(one.label_right.mean()), one.decision.jury_share

    best = max(able, key=worth)
    taken = measured[best]
    stay = "1 mix stays" if len(able) == 1 else f"{len(able)} mixes stay"
    return best, (
        f"{stay} within {allowed} of the jury under attack ({figures}); the one with the largest "
        f"clean accuracy is taken, {taken.clean_right.mean():.1%} with the jury's {jury.clean_right.mean():.1%}: "
        f"{taken.label_right.mean():.1%} right and {taken.robust_right.mean():.1%} right or flagged."
    )


def better(one: Measured, other: Measured) -> bool:
    """Whether a decision is better than another on the same images.

    It is within `max_cost` and the other is not. Or both are, or neither is, and of labels right under attack, images
    right or flagged under attack, images right without attack, and images not flagged without attack it has more in
    all, or as many and costs less, and fewer of none beyond noise; where it costs more than a tenth more it must have
    more of one beyond noise. Noise is McNemar's exact test, one-sided, at .05.
    """
    too_dear = [_too_dear(each, each.decision.max_cost) for each in (one, other)]
    if too_dear[0] != too_dear[1]:
        return too_dear[1]
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("label_right", "robust_right", "clean_right")]
    pairs.append((~one.clean_flagged, ~other.clean_flagged))
    changes = [(int((a & ~b).sum()), int((b & ~a).sum())) for a, b in pairs]
    gain = sum(gained - lost for gained, lost in changes)
    if any(mcnemar(lost, gained, alternative="greater") < _NOISE for gained, lost in changes):
        return False
    if one.cost > _DEARER * other.cost:
        return gain > 0 and any(mcnemar(gained, lost, alternative="greater") < _NOISE for gained, lost in changes)
    return gain > 0 or (gain == 0 and one.cost < other.cost)


def said_of(step: str, one: Measured, other: Measured) -> str:
    """Why a decision is taken instead of another, in a sentence."""
    value, before = (_in_words(getattr(decision, step)) for decision in (one.decision, other.decision))
    figures = ", ".join(
        f"{name} {getattr(other, key).mean():.1%} -> {getattr(one, key).mean():.1%}"
        for name, key in (
            ("label right", "label_right"),
            ("right or flagged", "robust_right"),
            ("clean", "clean_right"),
            ("flagged clean", "clean_flagged"),
        )
    )
    return f"{step} {value} instead of {before}: {figures}, cost {other.cost:.3g} -> {one.cost:.3g}."


def said_of_cost(taken: Measured, compared: Sequence[Measured]) -> str:
    """What the limit of cost means for the decision that is taken, and what more would buy; empty without a limit."""
    limit = taken.decision.max_cost
    if limit is None:
        return ""
    if _too_dear(taken, limit):
        return f"No decision costs at most {limit:g} times the classifier; this one, the cheapest, {taken.cost:.3g}."
    within = f"It costs {taken.cost:.3g} times the classifier, at most {limit:g} were allowed."
    buys = [_said_of_more(one, taken) for one in _worth_more(taken, compared)]
    return " ".join([within, *buys])


def _worth_more(taken: Measured, compared: Sequence[Measured]) -> list[Measured]:
    """Of the decisions beyond the limit those that keep more labels under attack than all that cost less.

    The best of them, if none keeps more than the one that is taken.
    """
    dearer = [one for one in compared if _too_dear(one, taken.decision.max_cost)]
    dearer.sort(key=lambda one: (one.cost, -one.label_right.mean(), -one.robust_right.mean()))
    found, most = [], float(taken.label_right.mean())
    for one in dearer:
        if one.label_right.mean() > most:
            found.append(one)
            most = float(one.label_right.mean())
    return found or sorted(dearer, key=lambda one: (-one.label_right.mean(), -one.robust_right.mean(), one.cost))[:1]


def _said_of_more(one: Measured, taken: Measured) -> str:
    points = [
        100 * float(getattr(one, name).mean() - getattr(taken, name).mean())
        for name in ("label_right", "robust_right", "clean_right")
    ]
    return (
        f"{one.cost:.3g} would buy {points[0]:+.1f} points label right, {points[1]:+.1f} right or flagged and "
        f"{points[2]:+.1f} clean."
    )


def _best_jury(wanted: DecisionRecipe, measured: Sequence[Measured]) -> int:
    """The jury that keeps most labels under attack; of what costs more than `max_cost` none, unless all do."""
    juries = _affordable([i for i, one in enumerate(measured) if one.decision.answer == "robust"], measured, wanted)
    return max(juries, key=lambda i: (measured[i].label_right.mean(), measured[i].clean_right.mean()))


def _as_good(mix: Measured, jury: Measured, cost: float) -> bool:
    """Whether a mix is, under attack, right and right or flagged nearly as often as the jury."""
    pairs = ((mix.label_right, jury.label_right), (mix.robust_right, jury.robust_right))
    return all(float(one.mean()) >= float(other.mean()) - cost - 1e-12 for one, other in pairs)


def _affordable(rows: Sequence[int], measured: Sequence[Measured], wanted: DecisionRecipe) -> list[int]:
    """Those of some decisions that cost at most what is wanted; where none does, the cheapest alone."""
    found = [i for i in rows if not _too_dear(measured[i], wanted.max_cost)]
    return found or sorted(rows, key=lambda i: measured[i].cost)[:1]


def _too_dear(one: Measured, limit: float | None) -> bool:
    return limit is not None and one.cost > limit


def _in_words(value: object) -> str:
    return (" + ".join(value) or "none") if isinstance(value, tuple) else str(value)
