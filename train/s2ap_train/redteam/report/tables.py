"""An evaluation as tables, the same on the terminal and on the page; shares are percent, without the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

from s2ap_train.redteam.detection import FEWEST
from s2ap_train.redteam.report.words import interval, share
from s2ap_train.redteam.results import AttackRow, DetectionFigures, Evaluation
from s2ap_train.redteam.rows import AblationRow
from s2ap_train.reporting.page import TableText
from s2ap_train.statistics.detection import Share
from s2ap_train.statistics.figures import WorstCase

__all__ = [
    "WORST_CASE",
    "ablation_table",
    "assumptions_table",
    "attack_tables",
    "configuration_table",
    "curve_table",
    "detection_table",
    "goal_table",
]

WORST_CASE = "worst case"
"""First cell of the row that sums up a table of attacks, its last one."""
_NONE = "-"
_NORMS = {"linf": "l_inf", "l2": "l2", "l0": "l0", None: _NONE}


def attack_tables(evaluation: Evaluation) -> list[TableText]:
    """Attacks that mislead, in percent of the images: those of the headline, other norms apart, controls last."""
    options, clean = evaluation.configuration, evaluation.clean
    titles = {
        "linf": f"Attacks that win, l_inf eps {options.eps:g}, % of {options.samples} images",
        "l2": f"Attacks that win, l2 {options.l2:g}, % of {options.samples} images",
        "l0": f"Attacks that win, l0 {options.pixels} pixels, % of {options.samples} images",
        None: f"Without an attacker, % of {options.samples} images (not in the worst case)",
    }
    if evaluation.masked:
        titles["linf"] += ": NO MEASURE, gradients are masked"
    header = ("attack", "knows", "bare", "defended", "95%", "flagged", "corrected", "label", "asked")
    tables = []
    for norm, title in titles.items():
        cells = [
            _attack_cells(row, options.samples)
            for row in evaluation.attacks
            if row.goal == "mislead" and row.norm == norm
        ]
        worst = evaluation.worst_case_by_norm.get(norm or "")
        if norm == "linf":
            wrong = _shares(evaluation.bare_clean.attack_success, clean.attack_success)
            figures = (share(clean.flagged), "", share(clean.accuracy), f"{clean.members_used:.1f}")
            cells.insert(0, ("clean", "nothing", *wrong, "", *figures))
            cells.append(_worst_cells(evaluation.worst_case, share(1 - evaluation.bare_worst_case.robust_accuracy)))
        elif cells and worst is not None:
            cells.append(_worst_cells(worst))
        if cells:
            notes, total = _HOW_TO_READ if norm == "linf" else (), cells[-1][0] == WORST_CASE
            tables.append(TableText(title, header, tuple(cells), notes, texts=2, total=total))
    return tables


def goal_table(evaluation: Evaluation) -> TableText | None:
    """Attacks that want something else than to mislead; None: there are none."""
    samples = evaluation.configuration.samples
    cells = tuple(
        (
            *(_name(row, samples), row.goal, _NORMS[row.norm]),
            *(share(row.reached), interval(*row.reached_interval)),
            *_shares(row.defended.flagged, row.defended.label_accuracy),
            f"{row.defended.members_used:.1f}",
        )
        for row in evaluation.attacks
        if row.goal != "mislead"
    )
    notes = (
        "wrong label: the final label is wrong, flagged or not. false alarm: flagged, and the final label is right as "
        "before. slow down: as many members were asked as the test can ask.",
    )
    header = ("attack", "goal", "norm", "reached", "95%", "flagged", "label", "asked")
    return TableText(f"Other goals, % of {samples} images", header, cells, notes, texts=3) if cells else None


def ablation_table(rows: Sequence[AblationRow], *, samples: int, eps: float) -> TableText:
    """Rows of the ablation, least defended first, in percent of the images."""
    cells = tuple(
        (
            row.name,
            *_shares(row.clean_accuracy, row.oblivious_accuracy, row.worst_case.label_accuracy),
            *(share(row.worst_case.robust_accuracy), interval(*row.worst_case.robust_accuracy_interval)),
            *(f"{share(row.clean_flagged)} / {share(row.flagged)}", f"{row.members_used:.1f}", f"{row.cost:.3g}"),
            _NONE if row.milliseconds is None else f"{row.milliseconds:.2f}",
            f"{row.descents}x{row.steps}",
        )
        for row in rows
    )
    header = ("", "clean", "PGD", "label", "or flag", "95%", "flagged", "asked", "cost", "ms", "work")
    notes = (
        *(f"{row.name}: {row.note}" for row in rows if row.note),
        "clean: answered and right without attack. PGD: not broken by PGD made on the row's own classifier, without "
        "its defence. label: the final label is right under every attack that knows everything in the row, thresholds "
        "included, and under what was found for other rows. or flag: the same, or it is flagged or not given. "
        "flagged: clean / under the adaptive attack. asked, cost, ms: members, floating-point operations as a multiple "
        "of the classifier's, and time for one clean image. work: descents x steps on an image that resists them.",
        "Every row faces PGD, its descents and all that was found for others: at least as many descents and steps as "
        "the search on the full defence. That and the bare classifier also face every other attack of this "
        "evaluation, which is not in their work.",
    )
    return TableText(f"Ablation, % of {samples} images, l_inf eps {eps:g}", header, cells, notes)


def detection_table(detection: DetectionFigures) -> TableText:
    """The detector alone: area under the ROC curve, detection at two false-alarm rates, and false alarms."""
    cells = tuple(
        (
            row.attack,
            str(row.at_1_percent.count),
            _NONE if math.isnan(row.area.value) else f"{row.area.value:.3f}",
            _NONE if math.isnan(row.area.low) else f"{row.area.low:.3f}-{row.area.high:.3f}",
            *(*_share_cells(row.at_1_percent), *_share_cells(row.at_5_percent)),
        )
        for row in detection.rows
    )
    alarms = (
        (detection.false_alarms, "clean images"),
        (detection.false_alarms_right, "whose first answer is right"),
        (detection.false_alarms_wrong, "whose first answer is wrong"),
    )
    said = (f"{'% ('.join(_share_cells(found))}) of {found.count} {what}" for found, what in alarms if found.count)
    header = ("attack", "images", "AUROC", "95%", "at 1%", "95%", "at 5%", "95%")
    notes = (
        "images whose first answer, the one that evidence is measured against, was right and is wrong under the "
        "attack; at 1%, at 5%: % of them detected at that share of clean images flagged, whatever the threshold of the "
        "file is; AUROC without interval: fewer than "
        f"{FEWEST} images",
        f"false alarms: {', '.join(said)}",
    )
    return TableText("The detector alone", header, cells, notes)


def curve_table(evaluation: Evaluation) -> TableText | None:
    """Robust accuracy over eps, steps and restarts; None: curves were not measured."""
    curves = evaluation.curves
    if curves is None:
        return None
    cells = tuple(
        (name, f"{p.at:.3g}", *_shares(p.label_accuracy, p.robust_accuracy), interval(*p.interval))
        for name, points in (("eps", curves.eps), ("steps", curves.steps), ("restarts", curves.restarts))
        for p in points
    )
    notes = (
        "The curve over eps falls by construction, since a point counts everything that was found inside its radius; "
        f"radii other than eps {evaluation.configuration.eps:g} were attacked far less, so a better attack may find "
        "more there. A curve over steps or restarts that still falls at its end says that more would find more.",
    )
    title = f"Curves, % of {curves.samples} images"
    return TableText(title, ("over", "at", "label", "or flag", "95%"), cells, notes) if cells else None


def assumptions_table(evaluation: Evaluation) -> TableText:
    """What every attack wants, has and needs, and its paper."""
    rows = tuple(
        (row.name, row.goal, row.knows, _NORMS[row.norm], row.assumes, row.source) for row in evaluation.attacks
    )
    header = ("attack", "wants", "knows", "norm", "assumes", "source")
    return TableText("What each attack assumes", header, rows, texts=6)


def configuration_table(evaluation: Evaluation) -> TableText:
    """Everything that is needed to do it again."""
    options = evaluation.configuration
    rows = (
        ("command", options.command),
        ("model file", options.model),
        ("SHA-256 of its weights", options.weights_sha256),
        ("decision", options.decision),
        ("recipe", options.recipe),
        ("data", f"{options.data}, {options.samples} test images"),
        ("SHA-256 of images and labels", options.images_sha256),
        ("attacks", options.preset),
        ("budgets", f"l_inf eps {options.eps:g}, l2 {options.l2:g}, l0 {options.pixels} pixels"),
        ("work", ", ".join(f"{name} {value}" for name, value in options.budget.items())),
        ("seed", str(options.seed)),
        ("versions", ", ".join(f"{name} {value}" for name, value in options.versions.items())),
        ("machine", options.machine),
        ("time", f"{evaluation.seconds:.0f} s, interrupted runs included"),
    )
    return TableText("What was run", ("", ""), rows, texts=2)


_HOW_TO_READ = (
    "An attack wins when the image is answered, not flagged, and the final label is wrong, be it so without an attack. "
    "worst case: some attack in the l_inf ball wins, whatever it was made for; a stronger attack may win on more.",
    "knows: what the attacker has; attacks that know only the classifier are made on it and replayed on the file. "
    "bare: the classifier inside the file, alone, under the same attack made on it; '-' where there is nothing to "
    "attack in it. corrected: flagged, and the final label is right. label: final label right, flagged or not; only "
    "the goal 'wrong label' aims at it. asked: members on average.",
    "Intervals hold 95 % (Clopper and Pearson) for other images from the same source, not for other attacks or other "
    "training seeds.",
)


def _attack_cells(row: AttackRow, samples: int) -> tuple[str, ...]:
    figures = row.defended
    return (
        _name(row, samples),
        "networks" if row.knows == "other networks" else row.knows,
        _NONE if row.bare is None else share(row.bare.attack_success),
        *(share(figures.attack_success), interval(*figures.attack_success_interval)),
        *_shares(figures.flagged, figures.corrected, figures.label_accuracy),
        f"{figures.members_used:.1f}",
    )


def _worst_cells(worst: WorstCase, bare: str = "") -> tuple[str, ...]:
    low, high = worst.robust_accuracy_interval
    broken = (share(1 - worst.robust_accuracy), interval(1 - high, 1 - low))
    return (WORST_CASE, "all", bare, *broken, "", "", share(worst.label_accuracy), "")


def _name(row: AttackRow, samples: int) -> str:
    """With the number of its images where it was not run on all."""
    return row.name if row.samples == samples else f"{row.name} ({row.samples})"


def _share_cells(found: Share) -> tuple[str, str]:
    return share(found.value), interval(found.low, found.high) if found.count else _NONE


def _shares(*values: float) -> tuple[str, ...]:
    return tuple(map(share, values))
