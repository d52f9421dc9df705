"""The verdict: the first thing that limits the figures of an evaluation, or the first baseline that is not beaten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2ap_train.redteam.ablation.costs import ORDER
from s2ap_train.redteam.ablation.names import BARE, CONFIDENCE, JURY, PRUNED, WIDER
from s2ap_train.redteam.report.pairs import change, needed, points, standing
from s2ap_train.redteam.report.words import informed, percent
from s2ap_train.redteam.results import Evaluation
from s2ap_train.redteam.rows import Measure
from s2ap_train.statistics.paired import PairedDifference

__all__ = ["Level", "Verdict", "verdict"]

Level = Literal["masked", "doubtful", "incomplete", "below", "not-above", "measured"]

_WORDS = {
    PRUNED: "its own robust classifier alone",
    CONFIDENCE: "its own robust classifier with the least confident inputs flagged as often",
    WIDER: "a wider robust classifier of the same compute",
    BARE: "the bare classifier",
}
_BY: dict[Measure, str] = {"label right": "by label", "right or flagged": "by right-or-flagged"}
_INSTEAD: dict[Measure, str] = {
    "label right": "Whoever needs the right label under attack gets at least as much from that",
    "right or flagged": "Whoever can act on a flag gets at least as much from that",
}


@dataclass(frozen=True)
class Verdict:
    """What a reader may conclude.

    Attributes:
        level: 'masked': the figures are no measure; 'doubtful': a check failed, or nothing was gained; 'incomplete':
            the attacks that decide were not run or not judged; 'below' or 'not-above': of the baselines the first that
            the file does not beat is above it, or level with it within noise; 'measured': none of these.
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
    return _against_baselines(evaluation)


def _against_baselines(evaluation: Evaluation) -> Verdict:
    pairs = [(name, measure, evaluation.against(name, measure)) for name, measure in ORDER]
    measured = [(name, measure, effect) for name, measure, effect in pairs if effect is not None]
    missing = [_WORDS[name] for name, _, effect in pairs if effect is None]
    unmeasured = f"It was not compared with {', '.join(missing)}." if missing else ""
    lost = [pair for pair in measured if standing(pair[2]) != "above"]
    loss = _loss_of_labels(evaluation)
    if lost:
        (name, measure, effect), *others = lost
        more = f"Besides, the file is {'; '.join(_short(*other) for other in others)}." if others else ""
        below = standing(effect) == "below"
        said = "below, beyond noise" if below else f"not above beyond noise. {needed(effect)}"
        text = (
            f"{_BY[measure].capitalize()} the file is {said}{'' if said.endswith('.') else '.'} From {_WORDS[name]} to "
            f"the file: {change(effect)}. {_INSTEAD[measure]}."
        )
        title = f"{'Below' if below else 'Not above'} {_WORDS[name]}, {_BY[measure]}"
        return Verdict("below" if below else "not-above", title, _joined(text, more, loss, unmeasured))
    held, bare = evaluation.worst_case.robust_accuracy, evaluation.bare_worst_case.robust_accuracy
    if held <= bare:
        text = f"In the worst case {percent(held)} of the images hold with the defence and {percent(bare)} without it."
        return Verdict("doubtful", "No gain over the bare classifier", _joined(text, loss, unmeasured))
    text = (
        "It raises the cost of transfer and off-the-shelf attacks, with calibrated false alarms. The figures are upper "
        "bounds under the attacks that were run; nobody has proved them."
    )
    beaten = f"Beyond noise the file is {'; '.join(_short(*pair) for pair in measured)}." if measured else ""
    alone = evaluation.against(PRUNED, "label right") is None
    title = "Measured, not compared with its own robust classifier" if alone else "Measured, and above its baselines"
    return Verdict("measured", title, _joined(text, beaten, loss, unmeasured))


def _short(name: str, measure: Measure, effect: PairedDifference) -> str:
    return f"{standing(effect)} {_WORDS[name]} {_BY[measure]} ({points(effect)})"


def _loss_of_labels(evaluation: Evaluation) -> str:
    """What a file loses whose classifier answers alone; empty for others."""
    if evaluation.configuration.answer != "accurate":
        return ""
    who = "The classifier alone answers what is not flagged, so the file is for off-the-shelf attacks only"
    effect = evaluation.against(JURY, "label right")
    if effect is None:
        return f"{who}; what that costs against the vote of its own jury was not measured."
    return f"{who}. From the vote of its own jury to the file, by label: {change(effect)}."


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
