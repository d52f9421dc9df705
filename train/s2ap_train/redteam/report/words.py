"""What an evaluation says, in sentences: the verdict, the headline, what limits it, what parts of the chain add."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from s2ap_train.redteam.ablation.costs import LABELS, PAIRS
from s2ap_train.redteam.checks.checks import BLACK_BOX
from s2ap_train.redteam.results import AttackRow, Evaluation, PartCost
from s2ap_train.statistics.paired import NOISE, PairedDifference

__all__ = [
    "Verdict",
    "caveats",
    "cost_in_words",
    "count_in_words",
    "headline",
    "in_worst_case",
    "informed",
    "interval",
    "labels_attacked",
    "misleads",
    "percent",
    "robust_against_pruned",
    "search_in_words",
    "share",
    "unanswered",
    "verdict",
]

ENOUGH_SAMPLES = 300
"""Images below which the width of the interval is said aloud: it is up to 6 points each way there (98 / sqrt(N))."""

_CLEAN, _FROM_OTHERS = "clean image", "other attack"
"""Keys of `broken_by` for what an adaptive attack found broken before its first step."""
_INSTEAD_OF_PRUNED = next(part for part, _, _, _ in PAIRS if "S2AP-pruned" in part)

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
    names = [check.name for check in failed if check.masking or not evaluation.masked]
    failure = f"The sanity check{'s' * (len(names) > 1)} {', '.join(names)} FAILED"
    if evaluation.masked:
        text = (
            f"{failure}, so the attacks were led astray, and images that they did not break may be easy to break. Do "
            "not quote any figure of this evaluation as robustness."
        )
        return Verdict("masked", "Masked gradients: the figures are no measure", text)
    if failed:
        text = f"{failure}; a stronger attack is likely to lower the figures."
        return Verdict("doubtful", "Doubtful: the attack was too weak", text)
    if not informed(evaluation):
        text = (
            "No attack that knows everything was run to the end, so the worst case says nothing of an attacker that "
            "adapts to the defence."
        )
        return Verdict("incomplete", "Incomplete: no attacker that knows the defence", text)
    if not any(check.passed for check in evaluation.checks):
        text = "No sanity check was judged, so nothing says whether the attacks worked as they should."
        return Verdict("incomplete", "Incomplete: the attack was not checked", text)
    robust, labels = robust_against_pruned(evaluation), _labels_against_pruned(evaluation)
    if _below(evaluation.against_pruned):
        text = (
            f"{robust} Whoever needs accuracy under attack gets more from that classifier alone; the list of what the "
            "parts add or cost says where it is lost."
        )
        return Verdict("worse", "Below its own pruned classifier", text)
    if labels is not None and _below(labels):
        text = (
            f"Label accuracy of the full defence, which corrects what it flags, is {_standing(labels)} that of its own "
            f"S2AP-pruned classifier: {_change(labels)}. To be flagged does not count here. {robust} ".rstrip()
            + " Whoever acts on the final labels gets more right ones under attack from that classifier alone."
        )
        return Verdict("worse", "Labels below those of its own pruned classifier", text)
    held, bare = evaluation.worst_case.robust_accuracy, evaluation.bare_worst_case.robust_accuracy
    if held <= bare:
        text = f"In the worst case {percent(held)} of the images hold with the defence and {percent(bare)} without it."
        return Verdict("doubtful", "No gain over the bare classifier", text)
    text = (
        "It raises the cost of transfer and off-the-shelf attacks, with calibrated false alarms. The figures are upper "
        "bounds under the attacks that were run; nobody has proved them."
    )
    return Verdict("measured", "Measured, and no sanity check failed", text)


def headline(evaluation: Evaluation) -> str:
    """The worst case in one line; where it says nothing of an attacker that knows the defence, that stands first."""
    worst, options = evaluation.worst_case, evaluation.configuration
    low, high = worst.robust_accuracy_interval
    figure = (
        f"{percent(worst.robust_accuracy)} (95 % interval {percent(low)} to {percent(high)}); bare classifier "
        f"{percent(evaluation.bare_worst_case.robust_accuracy)}; final label right under every attack "
        f"{percent(worst.label_accuracy)}{'' if labels_attacked(evaluation) else ' (not attacked for)'}"
    )
    where = f"worst case of {count_in_words(evaluation)}, {options.samples} images, l_inf eps {options.eps:g}"
    if evaluation.masked:
        return f"NO MEASURE OF ROBUSTNESS, gradients are masked; {where}: not broken {figure}"
    if not informed(evaluation):
        return f"NO ATTACKER KNEW THE DEFENCE; {where}: not broken {figure}"
    return f"robust accuracy, {where}: {figure}"


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


def cost_in_words(cost: PartCost) -> str:
    """What one part of the chain does to a figure, beyond noise (p < .05) or not."""
    effect = cost.effect
    if not _beyond(effect):
        return f"{cost.part}: changes {cost.measure} by no more than noise, {_change(effect)}"
    verb = "LOWERS" if effect.difference < 0 else "raises"
    return f"{cost.part}: {verb} {cost.measure} beyond noise, {_change(effect)}"


def robust_against_pruned(evaluation: Evaluation) -> str:
    """Whether the file holds more or less than its own pruned classifier, beyond noise or not; empty: unmeasured."""
    effect = evaluation.against_pruned
    if effect is None:
        return ""
    return (
        f"Robust accuracy of the full defence is {_standing(effect)} that of its own S2AP-pruned, adversarially "
        f"trained classifier: {_change(effect)}. An image that is flagged, or not answered, counts as held."
    )


def search_in_words(evaluation: Evaluation) -> str:
    """What the search over all attacks added to them; empty where none started from others."""
    for row in evaluation.attacks:
        broken = row.defended.configuration.get("broken_by", {})
        if _FROM_OTHERS in broken:
            own = {name: count for name, count in broken.items() if name not in {_FROM_OTHERS, _CLEAN} and count}
            counts = (broken.get(_CLEAN, 0), broken[_FROM_OTHERS], sum(own.values()))
            clean, others, alone = (_count(count, "image") for count in counts)
            return (
                f"{row.name} starts from all others: {clean} wrong without an attack, {others} broken by others, "
                f"{alone} that nothing else broke{''.join(f'; {name}: {count}' for name, count in own.items())}."
            )
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


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _labels_against_pruned(evaluation: Evaluation) -> PairedDifference | None:
    """Label accuracy of a file that corrects against that of its own pruned classifier; None: not that, or unmeasured.

    The pair is of the row that corrects. That row is the file where it has the file's label accuracy: a file that
    rejects has no image right that one that corrects has not, so equal shares are the same images.
    """
    for cost in evaluation.costs:
        served = cost.effect.after == evaluation.worst_case.label_accuracy
        if cost.part == _INSTEAD_OF_PRUNED and cost.measure == LABELS and served:
            return cost.effect
    return None


def _below(effect: PairedDifference | None) -> bool:
    return effect is not None and effect.difference < 0 and _beyond(effect)


def _beyond(effect: PairedDifference) -> bool:
    return effect.p_value < NOISE


def _standing(effect: PairedDifference) -> str:
    if not effect.difference:
        return "level with"
    return f"{'BELOW' if effect.difference < 0 else 'above'}, {'beyond' if _beyond(effect) else 'within'} noise,"


def _change(effect: PairedDifference) -> str:
    low, high = effect.interval
    return (
        f"from {percent(effect.before)} to {percent(effect.after)} ({100 * effect.difference:+.1f} points, 95 % "
        f"interval {100 * low:+.1f} to {100 * high:+.1f}; of {effect.samples} images {effect.gained} gained, "
        f"{effect.lost} lost; exact McNemar p = {effect.p_value:.2g})"
    )
