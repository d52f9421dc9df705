"""What a manifest says of the decision, for people: in plain words, and as the table of what else was compared."""

from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from s2ap_defend.manifest import Frontier, FrontierRow, Manifest
from s2ap_defend.tables import harmless, plain_table

__all__ = ["decision_table", "print_frontier"]

_UNDECIDED = {
    "sign": "flagged where its evidence is above 0, otherwise clean",
    "clean": "clean",
    "adversarial": "flagged",
    "abstain": "not answered",
}
_PURIFIED = {
    "always": "every image",
    "suspicious": "only what the opening does not accept on the image as it came",
    "off": "nothing",
}
_SETTINGS: dict[str, Callable[[FrontierRow], str]] = {
    "answer": lambda row: row.answer,
    "jury\nshare": lambda row: f"{row.jury_share:g}" if row.answer == "mixed" else "",
    "power": lambda row: f"{row.amplification:g}" if row.answer == "mixed" else "",
    "purify": lambda row: row.purify,
    "juror\nweight": lambda row: f"{row.juror_weight:g}",
    "clean\nafter": lambda row: str(row.min_accept),
}
"""Columns of the frontier that tell its rows apart; those that are alike in all rows are left out."""


def decision_table(manifest: Manifest) -> Table:
    """Who answers, who votes, when an input is clean, what becomes of a flagged one, and what is purified."""
    table = plain_table("", "", title="Decision")
    table.show_header = False
    table.columns[1].no_wrap = False
    for what, words in (
        ("answer", _answer(manifest)),
        ("jury", _jury(manifest)),
        ("clean", _clean(manifest)),
        ("flagged", _flagged(manifest)),
        ("bad pixels", "outside [0, 1]: flagged; not finite: flagged and not answered"),
        ("purified", _purified(manifest)),
    ):
        table.add_row(what, words)
    return table


def print_frontier(frontier: Frontier, console: Console) -> None:
    """Print the decisions that were compared, which one was taken, why, and what it has to beat."""
    console.print(_frontier_table(frontier))
    lines = [frontier.reason]
    if frontier.robust_classifier is not None:
        clean, attacked = frontier.robust_classifier
        lines.append(f"To beat: the first juror alone, {attacked:.1%} label right under attack, {clean:.1%} clean.")
    lines.append(f"Attack: {frontier.attack}.")
    for line in lines:
        console.print(harmless(line), markup=False, highlight=False, soft_wrap=True)


def _frontier_table(frontier: Frontier) -> Table:
    title = f"Decisions compared on {frontier.samples} {harmless(frontier.split)} images, eps {frontier.eps:g}"
    told = {name: [say(row) for row in frontier.rows] for name, say in _SETTINGS.items()}
    told = {name: values for name, values in told.items() if name == "answer" or len({*values}) > 1}
    measures = ("clean", "flagged", "label\nright", "right or\nflagged", "asked", "cost")
    table = plain_table("", *told, *measures, title=title)
    table.padding = 0  # one blank between columns, so that all fit into 80
    for i, row in enumerate(frontier.rows):
        table.add_row(
            ">" if i == frontier.chosen else "",
            *(values[i] for values in told.values()),
            f"{row.clean_accuracy:.1%}",
            f"{row.clean_flagged:.1%}",
            f"{row.label_accuracy:.1%}",
            f"{row.robust_accuracy:.1%}",
            f"{row.members_used:.1f}",
            f"{row.cost:.3g}x",
        )
    return table


def _answer(manifest: Manifest) -> str:
    decision = manifest.decision
    match decision.answer:
        case "robust":
            return "the jury: the vote of the jurors that were asked"
        case "accurate":
            return "the classifier, whatever the jury says, unless the input is flagged"
        case "mixed":
            share, power = decision.jury_share, decision.amplification
            text = (
                f"{decision.who_answers}: jury is the mean probability of the jurors that were asked, to the power of "
                f"{power:g} and normalised"
            )
            if share <= 0.5:
                return f"{text}; the classifier can outvote any jury"
            lead = (1.0 - share) / share
            return (
                f"{text}; the classifier can change the answer only where jury^{power:g} leads by less than {lead:.2g}"
            )


def _jury(manifest: Manifest) -> str:
    jurors, opening = sum(member.vote_weight > 0.0 for member in manifest.members), manifest.test.opening
    who = f"{jurors} of {len(manifest.members)} members vote" if jurors else "nobody votes"
    return f"{who}; every input is asked the first {f'{opening} members' if opening > 1 else 'member'}"


def _clean(manifest: Manifest) -> str:
    test = manifest.test
    first = next((i + 1 for i, value in enumerate(test.lower) if value is not None), None)
    text = "not before all members are asked" if first is None else f"after {first} members at the earliest"
    if test.await_vote:
        text += ", once no vote that is left can change the label"
    return f"{text}; undecided after the last member: {_UNDECIDED[test.truncation]}"


def _flagged(manifest: Manifest) -> str:
    if manifest.test.correction == "reject":
        return "not answered (rejected)"
    ends = ", which ends as soon as its winner is certain" if manifest.test.curtailed else ""
    return f"the vote of the whole jury{ends}"


def _purified(manifest: Manifest) -> str:
    if manifest.purifier.off:
        return _PURIFIED["off"]
    seeing = sum(member.sees == "purified" for member in manifest.members)
    who = f"the classifier and {seeing} of {len(manifest.members)} members" if seeing else "the classifier alone"
    return f"{_PURIFIED[manifest.decision.purify]}, for {who}"
