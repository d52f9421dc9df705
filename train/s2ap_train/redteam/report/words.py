"""What an evaluation says, in sentences: the verdict, the headline, what limits it, what is not covered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2ap_defend.tables import harmless
from s2ap_train.redteam.checks.checks import BLACK_BOX
from s2ap_train.redteam.report.effects import (
    against_pruned_in_words,
    below,
    labels_against_pruned,
    labels_against_pruned_in_words,
    percent,
)
from s2ap_train.redteam.results import AttackRow, Check, Evaluation

__all__ = [
    "Verdict",
    "caveats",
    "check_result",
    "found_in_words",
    "headline",
    "in_worst_case",
    "interval",
    "labels_attacked",
    "misleads",
    "percent",
    "search_in_words",
    "summary",
    "unanswered",
    "verdict",
]

ENOUGH_SAMPLES = 300
"""Images below which the width of the interval is said aloud: it is up to 6 points each way there (98 / sqrt(N))."""

_PURPOSE = "It raises the cost of transfer and off-the-shelf attacks, with calibrated false alarms"

_CLEAN, _FROM_OTHERS = "clean image", "other attack"
"""Keys of `broken_by` for what an adaptive attack found broken before its first step."""

Level = Literal["masked", "doubtful", "incomplete", "worse", "measured"]


@dataclass(frozen=True)
class Verdict:
    """What a reader may conclude.

    Attributes:
        level: 'masked': the figures are no measure; 'doubtful': a check failed, or nothing was gained; 'incomplete':
            the attacks that decide were not run or not judged; 'worse': below the file's own pruned classifier, in
            robust accuracy or, where it corrects, in label accuracy; 'measured': none of these.
        title: A few words.
        text: Why.
    """

    level: Level
    title: str
    text: str


def verdict(evaluation: Evaluation) -> Verdict:
    """The first thing that limits the figures, or that nothing does. It never calls a model robust."""
    failed = [check for check in evaluation.checks if check.passed is False]
    masking = [check.name for check in failed if check.masking]
    if masking:
        return Verdict(
            "masked",
            "Masked gradients: the figures are no measure",
            f"{_checks_failed(masking)}, so the attacks were led astray, and images that they did not break may be "
            "easy to break. Do not quote any figure of this evaluation as robustness.",
        )
    if failed:
        return Verdict(
            "doubtful",
            "Doubtful: the attack was too weak",
            f"{_checks_failed([check.name for check in failed])}; a stronger attack is likely to lower the figures.",
        )
    if not _adaptive(evaluation):
        return Verdict(
            "incomplete",
            "Incomplete: no attacker who knows the defence",
            "No attack that knows everything was run to the end, so the worst case says nothing of an attacker who "
            "adapts to the defence.",
        )
    if not any(check.passed for check in evaluation.checks):
        return Verdict(
            "incomplete",
            "Incomplete: the attack was not checked",
            "No sanity check was judged, so nothing says whether the attacks worked as they should.",
        )
    effect, labels = evaluation.against_pruned, labels_against_pruned(evaluation)
    if effect is not None and below(effect):
        return Verdict(
            "worse",
            "Below its own pruned classifier",
            f"{against_pruned_in_words(effect)} Whoever needs accuracy under attack gets more from that classifier "
            "alone; the list of what the parts add or cost says where it is lost.",
        )
    if labels is not None and below(labels):
        robust = "" if effect is None else f" {against_pruned_in_words(effect)}"
        return Verdict(
            "worse",
            "Labels below those of its own pruned classifier",
            f"{labels_against_pruned_in_words(labels)}{robust} Whoever acts on the final labels gets more right ones "
            "under attack from that classifier alone.",
        )
    if evaluation.worst_case.robust_accuracy <= evaluation.bare_worst_case.robust_accuracy:
        return Verdict(
            "doubtful",
            "No gain over the bare classifier",
            f"In the worst case {percent(evaluation.worst_case.robust_accuracy)} of the images hold with the defence "
            f"and {percent(evaluation.bare_worst_case.robust_accuracy)} without it.",
        )
    return Verdict(
        "measured",
        "Measured, and no sanity check failed",
        f"{_PURPOSE}. The figures are upper bounds under the attacks that were run; nobody has proved them.",
    )


def headline(evaluation: Evaluation) -> str:
    """The worst case in one line; where it says nothing of an attacker who knows the defence, that stands first."""
    worst, options = evaluation.worst_case, evaluation.configuration
    low, high = worst.robust_accuracy_interval
    figure = (
        f"{percent(worst.robust_accuracy)} (95 % interval {percent(low)} to {percent(high)}); bare classifier "
        f"{percent(evaluation.bare_worst_case.robust_accuracy)}; final label right under every attack "
        f"{percent(worst.label_accuracy)}{'' if labels_attacked(evaluation) else ' (not attacked for)'}"
    )
    where = f"worst case of {_count(evaluation)}, {options.samples} images, l_inf eps {options.eps:g}"
    if evaluation.masked:
        return f"NO MEASURE OF ROBUSTNESS, gradients are masked; {where}: not broken {figure}"
    if not _adaptive(evaluation):
        return f"NO ATTACKER KNEW THE DEFENCE; {where}: not broken {figure}"
    return f"robust accuracy, {where}: {figure}"


def summary(evaluation: Evaluation) -> tuple[str, str, str]:
    """Three sentences for readers who read nothing else: what was done, what an attacker reaches, what it costs."""
    options, clean = evaluation.configuration, evaluation.clean
    knowing = "none of them knows the defence"
    if _adaptive(evaluation):
        knowing = "the strongest know every weight and threshold of the file"
    tried = (
        f"{harmless(options.model)} was attacked on {options.samples} test images of {harmless(options.data)} with "
        f"{_count(evaluation)} that may change every pixel by {options.eps:g} of its range; {knowing}."
    )
    low, high = evaluation.worst_case.robust_accuracy_interval
    fooled = (
        f"They made it answer wrongly without an alarm on {percent(1 - evaluation.worst_case.robust_accuracy)} of the "
        f"images (95 % interval {percent(1 - high)} to {percent(1 - low)}), against "
        f"{percent(1 - evaluation.bare_worst_case.robust_accuracy)} for the same classifier without the defence"
    )
    fooled += "; but its gradients are masked, so a better attack may well reach more." if evaluation.masked else "."
    unanswered_share = f", leaves {percent(clean.abstained)} unanswered" if clean.abstained else ""
    cost = (
        f"Without an attack it answers {percent(clean.accuracy)} rightly (the bare classifier "
        f"{percent(evaluation.bare_clean.accuracy)}){unanswered_share} and raises an alarm on "
        f"{percent(clean.flagged)}; it asks {clean.members_used:.1f} members an image."
    )
    return tried, fooled, cost


def caveats(evaluation: Evaluation) -> tuple[str, ...]:
    """What a reader must know before quoting a figure, the gravest first."""
    found: list[str] = []
    options, worst = evaluation.configuration, evaluation.worst_case
    low, high = worst.robust_accuracy_interval
    found += _by_asking(evaluation)
    once = _adaptive(evaluation) and options.budget.get("restarts") == 1
    few = options.samples < ENOUGH_SAMPLES
    if few or once:
        means = [f"{options.samples} images"] if few else []
        means += ["one restart of the adaptive attacks"] if once else []
        better = "more restarts or steps" if _adaptive(evaluation) else "an attacker who knows the defence"
        found.append(
            f"{' and '.join(means).capitalize()}: the worst case lies between {percent(low)} and {percent(high)} at "
            f"95 % for other images, and {better} may lower it."
        )
    short = [row for row in evaluation.attacks if row.samples < options.samples]
    if short:
        names = ", ".join(f"{row.name} ({row.samples})" for row in short)
        found.append(f"Not run on all {options.samples} images, and not in the worst case of the others: {names}.")
    return tuple(found)


def search_in_words(evaluation: Evaluation) -> str:
    """What the search over all attacks added to them; empty where none started from others."""
    for row in evaluation.attacks:
        broken = row.defended.configuration.get("broken_by", {})
        if _FROM_OTHERS in broken:
            own = {name: count for name, count in broken.items() if name not in {_FROM_OTHERS, _CLEAN} and count}
            return (
                f"{row.name} starts from all others: {_images(broken.get(_CLEAN, 0))} wrong without an attack, "
                f"{_images(broken[_FROM_OTHERS])} broken by others, {_images(sum(own.values()))} that nothing "
                f"else broke{''.join(f'; {name}: {count}' for name, count in own.items())}."
            )
    return ""


def unanswered(evaluation: Evaluation) -> str:
    """Shares that the file did not answer, by attack; empty where it always answers."""
    shares = {"clean": evaluation.clean.abstained} | {row.name: row.defended.abstained for row in evaluation.attacks}
    if not any(shares.values()):
        return ""
    return "not answered (the defence abstains): " + ", ".join(f"{n} {percent(s)}" for n, s in shares.items())


def check_result(check: Check) -> str:
    """'passed', 'FAILED' or 'not judged'."""
    return {True: "passed", False: "FAILED", None: "not judged"}[check.passed]


def found_in_words(check: Check) -> str:
    """The values that decided, such as 'single step 0.12, iterative 0.35'."""
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in check.found.items())


def in_worst_case(row: AttackRow) -> bool:
    """Whether an attack's images count in the worst case: all in the l_inf ball, whatever the attack was made for."""
    return row.norm == "linf"


def misleads(row: AttackRow) -> bool:
    """Whether an attack is one of the main table: l_inf, and it wants to mislead."""
    return in_worst_case(row) and row.goal == "mislead"


def interval(low: float, high: float) -> str:
    """Ends of an interval in whole percent, such as '85-96'."""
    return f"{100 * low:.0f}-{100 * high:.0f}"


def labels_attacked(evaluation: Evaluation) -> bool:
    """Whether an l_inf attack that wants a wrong final label, flagged or not, was run on all images."""
    return any(
        in_worst_case(row) and row.goal == "wrong label" and row.samples == evaluation.configuration.samples
        for row in evaluation.attacks
    )


def _by_asking(evaluation: Evaluation) -> list[str]:
    """Images that attackers who only ask broke and those who know everything did not, the search left out."""
    larger = "give the adaptive attacks a larger budget before these figures are quoted."
    for check in evaluation.checks:
        count = int(check.found.get("broken_by_the_first_only", 0)) if check.name == BLACK_BOX else 0
        if count:
            return [
                f"{_images(count)} broken by attacks that only ask and by none that knows everything and starts from "
                f"no other's images: {larger}"
            ]
    answers = {row.name for row in evaluation.attacks if row.knows == "answers"}
    return [
        f"{name} alone broke {_images(alone)} that no gradient attack did"
        f"{f': {larger}' if _adaptive(evaluation) else '.'}"
        for name, alone in evaluation.worst_case.broken_only_by.items()
        if name in answers and alone
    ]


def _adaptive(evaluation: Evaluation) -> bool:
    """Whether an attack that knows everything was run on all images."""
    return any(
        misleads(row) and row.knows == "everything" and row.samples == evaluation.configuration.samples
        for row in evaluation.attacks
    )


def _checks_failed(names: list[str]) -> str:
    return f"{'The sanity check' if len(names) == 1 else 'The sanity checks'} {', '.join(names)} FAILED"


def _count(evaluation: Evaluation) -> str:
    """All that count in the worst case, whatever they know and want."""
    count = sum(map(in_worst_case, evaluation.attacks))
    return "1 attack" if count == 1 else f"{count} attacks"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
