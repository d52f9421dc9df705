"""What a manifest says of the decision, for people: in plain words, and as the table of what else was compared."""

from rich.console import Console
from rich.table import Table

from s2ap_defend.manifest import Frontier, FrontierRow, Manifest
from s2ap_defend.tables import harmless, plain_table, print_table

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
_MEASURES = {
    "clean_accuracy": ("clean", "{:.1%}"),
    "clean_flagged": ("flagged", "{:.1%}"),
    "label_accuracy": ("label\nright", "{:.1%}"),
    "robust_accuracy": ("right or\nflagged", "{:.1%}"),
    "members_used": ("asked", "{:.1f}"),
    "cost": ("cost", "{:.3g}x"),
}
_SETTINGS = [name for name in FrontierRow.model_fields if name not in _MEASURES]
_OF_THE_MIX = {"jury_share", "amplification"}


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
    print_table(_frontier_table(frontier), console)
    lines = [frontier.reason]
    if frontier.robust_classifier is not None:
        clean, attacked = frontier.robust_classifier
        lines.append(f"To beat: the first juror alone, {attacked:.1%} label right under attack, {clean:.1%} clean.")
    lines.append(f"Attack: {frontier.attack}.")
    for line in lines:
        console.print(harmless(line), markup=False, highlight=False, soft_wrap=True)


def _frontier_table(frontier: Frontier) -> Table:
    """The rows; of their settings those that tell them apart."""
    title = f"Decisions compared on {frontier.samples} {harmless(frontier.split)} images, eps {frontier.eps:g}"
    title += ", cost in time" * (frontier.cost_in == "time")
    shown = {name: [_setting(row, name) for row in frontier.rows] for name in _SETTINGS}
    shown = {name: values for name, values in shown.items() if name == "answer" or len({*values}) > 1}
    headers = (name.replace("amplification", "power").replace("_", "\n") for name in shown)
    table = plain_table("", *headers, *(header for header, _ in _MEASURES.values()), title=title)
    table.padding = 0  # one blank between columns, so that all fit into 80
    for i, row in enumerate(frontier.rows):
        figures = (form.format(getattr(row, name)) for name, (_, form) in _MEASURES.items())
        table.add_row(">" if i == frontier.chosen else "", *(values[i] for values in shown.values()), *figures)
    return table


def _setting(row: FrontierRow, name: str) -> str:
    value = getattr(row, name)
    if name in _OF_THE_MIX and row.answer != "mixed":
        return ""
    if isinstance(value, tuple):
        return " + ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    if manifest.test.correction == "keep":
        return "the answer stays" + ("" if manifest.decision.answer == "accurate" else ", of the whole jury")
    ends = ", which ends as soon as its winner is certain" if manifest.test.curtailed else ""
    return f"the vote of the whole jury{ends}"


def _purified(manifest: Manifest) -> str:
    if manifest.purifier.off:
        return _PURIFIED["off"]
    seeing = sum(member.sees == "purified" for member in manifest.members)
    who = f"the classifier and {seeing} of {len(manifest.members)} members" if seeing else "the classifier alone"
    return f"{_PURIFIED[manifest.decision.purify]}, for {who}"
