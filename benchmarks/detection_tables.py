"""The tables of the detection benchmark in Markdown; `python benchmarks/detection_tables.py FILE` prints a file's."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from report import aligned

NAMES = {
    "random_channel": "random channel",
    "fresh_channel": "random channel, fresh",
    "l1_norm": "L1 norm",
    "lottery_ticket": "lottery ticket",
    "subnetwork": "subnetwork (edge-popup)",
    "iterative_magnitude": "iterative magnitude",
    "robust": "S2AP",
    "robust_channel": "S2AP, channel",
    "robust_two_four": "S2AP, 2:4",
    "mutation": "MMT mutants",
    "mix": "**the mix**",
}
Json = Mapping[str, Any]


def print_tables(document: Json) -> None:
    """Print every table."""
    for title, lines in tables(document).items():
        print(f"\n{title}\n", *lines, sep="\n")
    for name, reason in document["refused"].items():
        print(f"\n{NAMES.get(name, name)}: no test, {reason}")
    print(f"\n{document['seconds']:.0f} s, less where parts were reused")


def tables(document: Json) -> dict[str, list[str]]:
    """Lines of every table, by title."""
    groups, paper = document["groups"], document["paper"]
    return {
        "Attacks on the bare classifier": _attack_table(document),
        "Members": _member_table(groups),
        "Area under the ROC curve %, inputs that fool the base": _by_attack(groups, "auroc"),
        "Detection % at 5 % false alarms": _by_attack(groups, "detected_at_0.05"),
        "Detection % at 1 % false alarms": _by_attack(groups, "detected_at_0.01"),
        "Final label right %, inputs that fool the base (correction)": _by_attack(groups, "corrected"),
        "Label right % by a vote alone, without detection": _by_attack(groups, "vote_only_corrected"),
        "Members asked until the test decides": _by_attack(groups, "decided_after", clean="decided_after"),
        "Members asked, the vote on the label included": _by_attack(groups, "members_used", clean="members_used"),
        "Clean images": _clean_table(groups),
        "The paper's test: detection %": _by_attack(paper, "detected"),
        "The paper's test: area under the ROC curve of the label change rate %": _by_attack(paper, "auroc"),
        "The paper's test: members asked": _by_attack(paper, "members_used", clean="members_used"),
        "The paper's test: clean images": _clean_table(paper),
        "At the false-alarm rate of the paper's test: detection %, mix / paper, + - beyond noise": _matched_table(
            document
        ),
        "PGD on the base, and on base and members: ROC area, the group disagrees / corrects %": _budget_table(groups),
        "The same: detection % at 5 % false alarms": _by_attack(groups, "detected_at_0.05", part="budgets"),
        "Where the mix detects less than one of its families at 5 % false alarms, beyond noise": _worse(document),
        "Kinds of test on the mix": _kind_table(document["kinds"]),
        "What happens to a flagged input, mix": _kind_table(document["corrections"]),
        "Conformal false alarms over redraws of the calibration inputs, mix": _redraw_table(document["redraws"]),
    }


def _percent(figure: object) -> str:
    """A share in percent, with its interval where it has one."""
    if isinstance(figure, Mapping):
        if figure["value"] is None:
            return "-"
        return f"{100 * figure['value']:.1f} ({100 * figure['low']:.0f}-{100 * figure['high']:.0f})"
    return "-" if figure is None else f"{100 * float(str(figure)):.1f}"


def _short(figure: Any) -> str:  # noqa: ANN401 - a share or a number
    if isinstance(figure, Mapping):
        return "-" if figure["value"] is None else f"{100 * figure['value']:.1f}"
    return f"{figure:.1f}"


def _rows(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return aligned([header, ("---",) * len(header), *rows])


def _attack_table(document: Json) -> list[str]:
    rows = []
    for name, found in document["attacks"].items():
        norms = [("-" if found[norm] is None else f"{found[norm]:.3g}") for norm in ("linf", "l2", "l0")]
        at_paper = found.get("success_at_paper_budget")
        cut = "".join(f", {key} {value}" for key, value in found["cut"].items())
        rows.append((name + cut, _percent(found["success"]), _percent(at_paper), *norms, f"{found['seconds']:.0f}"))
    return _rows(("attack", "success %", "at its paper's eps", "l_inf", "l2", "l0", "s"), rows)


def _member_table(groups: Json) -> list[str]:
    rows = [
        (
            NAMES.get(name, name),
            f"{found['members']} ({found['adversarially_trained']})",
            _percent(found["clean_accuracy"]),
            _percent(found["robust_accuracy_validation"]),
            _percent(found["sparsity"]),
            f"{found['flops_of_base']:.2f}",
            f"{found.get('alpha', 0.05):g}",
        )
        for name, found in groups.items()
    ]
    return _rows(
        ("family", "members (adv. trained)", "clean %", "robust %", "sparsity %", "FLOPs / base", "alpha"), rows
    )


def _by_attack(groups: Json, key: str, *, part: str = "attacks", clean: str | None = None) -> list[str]:
    names = list(next(iter(groups.values()))[part])
    rows = []
    for group, found in groups.items():
        cells = [_short(found[part][name][key]) if found[part][name]["fooled"] else "-" for name in names]
        values = [found[part][name][key] for name in names if found[part][name]["fooled"]]
        numbers = [value["value"] * 100 if isinstance(value, Mapping) else value for value in values]
        mean = f"{sum(numbers) / len(numbers):.1f}" if numbers else "-"
        rows.append((NAMES.get(group, group), *([f"{found['clean'][clean]:.1f}"] if clean else []), *cells, mean))
    return _rows(("family", *(["clean"] if clean else []), *names, "mean"), rows)


def _clean_table(groups: Json) -> list[str]:
    keys = ("false_alarms", "mistakes_flagged", "bare_accuracy", "accuracy", "vote_only_accuracy")
    header = ("family", "false alarms %", "mistakes flagged %", "bare %", "defended %", "vote alone %")
    rows = [(NAMES.get(name, name), *(_percent(found["clean"][key]) for key in keys)) for name, found in groups.items()]
    return _rows(header, rows)


def _matched_table(document: Json) -> list[str]:
    rows = []
    names = list(document["groups"]["mix"]["attacks"])
    for group, found in document["mix_against_paper"].items():
        cells = [
            f"{_short(found[name]['mix'])} / {_short(found[name]['paper'])}{_mark(found[name])}"
            if name in found
            else "-"
            for name in names
        ]
        rows.append((NAMES.get(group, group), _percent(found["false_alarm_rate"]), *cells))
    return _rows(("paper's test with", "false alarms %", *names), rows)


def _mark(found: Json) -> str:
    """Which side is better beyond the paired 95 % interval: + the mix, - the other."""
    return " +" if found["low"] > 0 else " -" if found["high"] < 0 else ""


def _budget_table(groups: Json) -> list[str]:
    names = list(groups["mix"]["budgets"])
    rows = []
    for group, found in groups.items():
        cells = []
        for name in names:
            figures = found["budgets"][name]
            if figures["fooled"]:
                parts = (figures["group_disagrees"]["value"], figures["vote_only_corrected"]["value"])
                shares = " / ".join(f"{100 * part:.0f}" for part in parts)
                cells.append(f"{figures['auroc']['value']:.3f}, {shares}")
            else:
                cells.append("-")
        rows.append((NAMES.get(group, group), _percent(found["clean_accuracy"]), *cells))
    fooled = [str(groups["mix"]["budgets"][name]["fooled"]) for name in names]
    return _rows(("family", "clean %", *names), [*rows, ("(inputs, the mix)", "", *fooled)])


def _worse(document: Json) -> list[str]:
    rows = [
        (
            NAMES.get(group, group),
            name,
            f"{100 * found['difference']:+.1f} ({100 * found['low']:+.1f} to {100 * found['high']:+.1f})",
        )
        for group, columns in document["mix_against_families"].items()
        for name, found in columns.items()
        if found["high"] < 0
    ]
    return _rows(("family", "attack", "mix - family, points"), rows) if rows else ["nowhere"]


def _kind_table(kinds: Json) -> list[str]:
    rows = []
    for name, found in kinds.items():
        attacks = [figures for figures in found["attacks"].values() if figures["fooled"]]
        means = {
            key: sum(figures[key]["value"] for figures in attacks) / len(attacks) for key in ("detected", "corrected")
        }
        decided = sum(figures["decided_after"] for figures in attacks) / len(attacks)
        used = sum(figures["members_used"] for figures in attacks) / len(attacks)
        clean = found["clean"]
        rows.append(
            (
                name,
                _percent(clean["false_alarms"]),
                _percent(clean["accuracy"]),
                *(_percent(means[key]) for key in means),
                f"{clean['decided_after']:.1f} / {decided:.1f}",
                f"{clean['members_used']:.1f} / {used:.1f}",
            )
        )
    header = ("", "false alarms %", "clean label right %", "detected %", "label right %")
    return _rows((*header, "decided after, clean / attacked", "asked, clean / attacked"), rows)


def _redraw_table(redraws: Json) -> list[str]:
    rows = [
        (
            alpha,
            f"{100 * found['mean']:.2f}",
            f"{100 * found['standard_error']:.2f}",
            str(found["calibration_inputs"]),
            "yes" if found["holds"] else "NO",
            f"{found['alike']:.2f}",
        )
        for alpha, found in redraws.items()
    ]
    header = ("alpha", "false alarms on test inputs %", "standard error", "calibration inputs", "holds", "alike, p")
    return _rows(header, rows) if rows else ["too few calibration inputs"]


if __name__ == "__main__":
    print_tables(json.loads(Path(sys.argv[1]).read_bytes()))
