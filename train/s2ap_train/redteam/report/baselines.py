"""The file next to its baselines, and what must hold of it."""

from __future__ import annotations

from collections.abc import Sequence

from s2ap_train.redteam.ablation.costs import BASELINES
from s2ap_train.redteam.report.pairs import standing
from s2ap_train.redteam.report.words import interval, share
from s2ap_train.redteam.results import Evaluation
from s2ap_train.redteam.rows import Measure, Requirement
from s2ap_train.reporting.page import Block, Point, TableText
from s2ap_train.statistics.figures import Headlines

__all__ = ["HOLDS", "baseline_tables", "requirements"]

HOLDS = {True: "holds", False: "does not hold", None: "undecided"}
_KINDS = {True: "passed", False: "failed", None: "not judged"}


_SHORT: dict[Measure, str] = {
    "clean accuracy": "clean",
    "label right": "label right",
    "right or flagged": "or flagged",
}


def baseline_tables(evaluation: Evaluation) -> list[Block]:
    """Both figures of the file and of every baseline, and each difference; without baselines those of the file."""
    options, clean, rows = evaluation.configuration, evaluation.clean, evaluation.ablation
    named = [row for name in BASELINES for row in rows if row.name == name]
    cells = [_figures("this file", clean.accuracy, clean.flagged, evaluation.worst_case)]
    cells += [_figures(row.name, row.clean_accuracy, row.clean_flagged, row.worst_case) for row in named]
    title = f"Left under every attack, % of {options.samples} images, l_inf eps {options.eps:g}"
    if evaluation.masked:
        title += ": NO MEASURE, gradients are masked"
    header = ("", "clean", "flagged", "label right", "95%", "right or flagged", "95%")
    notes = ("clean: right without attack, flagged or not; flagged: of the clean images.",)
    tables: list[Block] = [TableText(title, header, tuple(cells), notes)]
    return [*tables, _differences(evaluation)] if evaluation.comparisons else tables


def requirements(lines: Sequence[Requirement]) -> list[Block]:
    """What must hold of a file, line by line."""
    if not lines:
        return []
    counts = [_counted(sum(one.holds is holds for one in lines), word) for holds, word in HOLDS.items()]
    points = [Point(f"{HOLDS[one.holds]}: {one.line}", one.said, _KINDS[one.holds]) for one in lines]
    return [f"What must hold of the decision: {', '.join(counts)}.", points]


def _counted(number: int, word: str) -> str:
    many = word.replace("holds", "hold").replace("does", "do")
    return f"{number} {word if number == 1 else many}"


def _differences(evaluation: Evaluation) -> TableText:
    cells = tuple(
        (
            *(one.baseline, _SHORT[one.measure], standing(one.effect), f"{100 * one.effect.difference:+.1f}"),
            "{:+.1f} to {:+.1f}".format(*(100 * end for end in one.effect.interval)),
            *(str(one.effect.gained), str(one.effect.lost), f"{one.effect.p_value:.2g}"),
        )
        for one in evaluation.comparisons
    )
    header = ("file against", "by", "is", "points", "95%", "gained", "lost", "p")
    notes = (
        "Image by image: exact McNemar p, interval of Agresti and Min; p-values are not corrected for their number. "
        "not above: no difference beyond noise (p < .05), or none at all.",
    )
    return TableText("The file against its baselines", header, cells, notes, texts=3)


def _figures(name: str, clean: float, flagged: float, left: Headlines) -> tuple[str, ...]:
    return (
        *(name, share(clean), share(flagged)),
        *(share(left.label_accuracy), interval(*left.label_accuracy_interval)),
        *(share(left.robust_accuracy), interval(*left.robust_accuracy_interval)),
    )
