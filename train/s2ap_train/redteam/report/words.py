"""What an evaluation says, in sentences: the headline, what limits it, what the search added, what is not answered."""

from __future__ import annotations

import math
from collections.abc import Mapping

from s2ap_train.redteam.attacks.oblivious import FOR_A_LABEL
from s2ap_train.redteam.checks.checks import BLACK_BOX
from s2ap_train.redteam.results import AttackRow, Evaluation

__all__ = [
    "caveats",
    "count_in_words",
    "headline",
    "in_worst_case",
    "informed",
    "interval",
    "labels_attacked",
    "misleads",
    "percent",
    "search_in_words",
    "share",
    "unanswered",
]

ENOUGH_SAMPLES = 300
"""Images below which the width of the interval is said aloud: it is up to 6 points each way there (98 / sqrt(N))."""

_CLEAN, _FROM_OTHERS = "clean image", "other attack"
"""Keys of `broken_by` for what an adaptive attack found broken before its first step."""


def headline(evaluation: Evaluation) -> str:
    """Both figures in one line; where they say nothing of an attacker that knows the defence, that stands first."""
    worst, clean, options = evaluation.worst_case, evaluation.clean, evaluation.configuration
    aimed = "" if labels_attacked(evaluation) else ", not attacked for"
    figure = (
        f"label right {_with_interval(worst.label_accuracy, worst.label_accuracy_interval, aimed)}, right or flagged "
        f"{_with_interval(worst.robust_accuracy, worst.robust_accuracy_interval)}; without attack "
        f"{percent(clean.accuracy)} right, {percent(clean.flagged)} flagged"
    )
    where = f"worst case of {count_in_words(evaluation)}, {options.samples} images, l_inf eps {options.eps:g}"
    if evaluation.masked:
        return f"NO MEASURE OF ROBUSTNESS, gradients are masked; {where}: {figure}"
    if not informed(evaluation):
        return f"NO ATTACKER KNEW THE DEFENCE; {where}: {figure}"
    return f"{where}: {figure}"


def caveats(evaluation: Evaluation) -> tuple[str, ...]:
    """What a reader must know before quoting a figure, the gravest first."""
    options, knowing = evaluation.configuration, informed(evaluation)
    found = _by_asking(evaluation)
    means = [f"{options.samples} images"] * (options.samples < ENOUGH_SAMPLES)
    means += ["one restart of the adaptive attacks"] * (knowing and options.budget.get("restarts") == 1)
    if means:
        better = "more restarts or steps" if knowing else "an attacker that knows the defence"
        found.append(f"{' and '.join(means).capitalize()}: {better} may lower the worst case.")
    short = [f"{row.name} ({row.samples})" for row in evaluation.attacks if row.samples < options.samples]
    if short:
        found.append(f"Not run on all {options.samples} images, and not in the worst case: {', '.join(short)}.")
    return tuple(found)


def search_in_words(evaluation: Evaluation) -> str:
    """What the search over all attacks added to them; empty where none started from others."""
    for row in evaluation.attacks:
        broken = row.defended.configuration.get("broken_by", {})
        if _FROM_OTHERS in broken:
            turned = {name.removeprefix(FOR_A_LABEL): n for name, n in broken.items() if name.startswith(FOR_A_LABEL)}
            won = {name: n for name, n in broken.items() if not name.startswith(FOR_A_LABEL)}
            first = f"{row.name} starts from all others: {_added(won, 'broken by others', 'broke')}."
            then = f" For a label of what is left, then: {_added(turned, 'turned by others', 'turned')}."
            return first + then * bool(turned)
    return ""


def unanswered(evaluation: Evaluation) -> str:
    """Shares that the file did not answer, by attack; empty where it always answers."""
    shares = {"clean": evaluation.clean.abstained} | {row.name: row.defended.abstained for row in evaluation.attacks}
    if not any(shares.values()):
        return ""
    return "not answered (the defence abstains): " + ", ".join(f"{n} {percent(s)}" for n, s in shares.items())


def in_worst_case(row: AttackRow) -> bool:
    """Whether an attack's images count in the worst case: all in the l_inf ball, whatever the attack was made for."""
    return row.norm == "linf"


def misleads(row: AttackRow) -> bool:
    """Whether an attack is one of the main table: l_inf, and it wants to mislead."""
    return in_worst_case(row) and row.goal == "mislead"


def labels_attacked(evaluation: Evaluation) -> bool:
    """Whether an l_inf attack that wants a wrong final label, flagged or not, was run on all images."""
    return any(in_worst_case(row) and row.goal == "wrong label" for row in _on_all_images(evaluation))


def informed(evaluation: Evaluation) -> bool:
    """Whether an attack that knows everything was run on all images."""
    return any(misleads(row) and row.knows == "everything" for row in _on_all_images(evaluation))


def count_in_words(evaluation: Evaluation) -> str:
    """All attacks that count in the worst case, whatever they know and want."""
    return _count(sum(map(in_worst_case, evaluation.attacks)), "attack")


def share(value: float) -> str:
    """A share in percent, such as '91.7'; '-' where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def percent(value: float) -> str:
    """The same with its sign, '91.7%'."""
    return f"{share(value)}%"


def interval(low: float, high: float) -> str:
    """Ends of an interval in whole percent, such as '85-96'."""
    return f"{100 * low:.0f}-{100 * high:.0f}"


def _on_all_images(evaluation: Evaluation) -> list[AttackRow]:
    return [row for row in evaluation.attacks if row.samples == evaluation.configuration.samples]


def _by_asking(evaluation: Evaluation) -> list[str]:
    """Images that attackers that only ask broke and those that know everything did not, the search left out."""
    larger = "give the adaptive attacks a larger budget before these figures are quoted."
    for check in evaluation.checks:
        count = int(check.found.get("broken_by_the_first_only", 0)) if check.name == BLACK_BOX else 0
        if count:
            return [
                f"{_count(count, 'image')} broken by attacks that only ask and by none that knows everything and "
                f"starts from no other's images: {larger}"
            ]
    answers = {row.name for row in evaluation.attacks if row.knows == "answers"}
    return [
        f"{name} alone broke {_count(alone, 'image')} that no gradient attack did"
        f"{f': {larger}' if informed(evaluation) else '.'}"
        for name, alone in evaluation.worst_case.broken_only_by.items()
        if name in answers and alone
    ]


def _added(broken: Mapping[str, int], by_others: str, verb: str) -> str:
    """What a search found broken, and what each of its own descents added."""
    own = {name: count for name, count in broken.items() if name not in {_FROM_OTHERS, _CLEAN} and count}
    counts = (broken.get(_CLEAN, 0), broken.get(_FROM_OTHERS, 0), sum(own.values()))
    clean, others, alone = (_count(count, "image") for count in counts)
    each = "".join(f"; {name}: {count}" for name, count in own.items())
    return f"{clean} wrong without an attack, {others} {by_others}, {alone} that nothing else {verb}{each}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _with_interval(value: float, ends: tuple[float, float], remark: str = "") -> str:
    return f"{percent(value)} (95 % interval {percent(ends[0])} to {percent(ends[1])}{remark})"
