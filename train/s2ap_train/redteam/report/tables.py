"""An evaluation as tables, the same on the terminal and on the page; shares are percent, without the sign."""

from __future__ import annotations

import math
from collections.abc import Sequence

from s2ap_defend.tables import harmless
from s2ap_train.page import TableText
from s2ap_train.redteam.detection import FEWEST
from s2ap_train.redteam.report.words import interval, labels_attacked, misleads
from s2ap_train.redteam.results import AblationRow, AttackRow, CurvePoint, DetectionFigures, Evaluation
from s2ap_train.statistics.detection import Share

__all__ = [
    "WORST_CASE",
    "ablation_table",
    "assumptions_table",
    "attack_tables",
    "configuration_table",
    "curve_tables",
    "detection_table",
    "eps_curve_limits",
    "goal_table",
]

_NONE = "-"
WORST_CASE = "worst case"
"""First cell of the row that sums up a table of attacks, its last one."""

_HEADER = ("attack", "knows", "bare", "defended", "95%", "flagged", "corrected", "label", "asked")
_NORMS = {"linf": "l_inf", "l2": "l2", "l0": "l0"}


def attack_tables(evaluation: Evaluation) -> tuple[TableText, ...]:
    """Attacks that mislead, in percent of the images: those of the headline, other norms apart, controls last."""
    options = evaluation.configuration
    misleading = [row for row in evaluation.attacks if row.goal == "mislead"]
    budgets = {"linf": f"eps {options.eps:g}", "l2": f"{options.l2:g}", "l0": f"{options.pixels} pixels"}
    tables = [_main_table(evaluation, [row for row in misleading if misleads(row)], budgets["linf"])]
    for norm in ("l2", "l0"):
        rows = [row for row in misleading if row.norm == norm]
        if rows:
            title = f"Attacks that win, {_NORMS[norm]} {budgets[norm]}, % of {options.samples} images"
            cells = [_attack_cells(row, options.samples) for row in rows]
            if norm in evaluation.worst_case_by_norm:
                worst = evaluation.worst_case_by_norm[norm]
                cells.append(_worst_cells(worst.robust_accuracy_interval, worst.robust_accuracy, worst.label_accuracy))
            tables.append(TableText(title, _HEADER, tuple(cells), _partial(rows, options.samples), texts=2))
    controls = [row for row in misleading if row.norm is None]
    if controls:
        title = f"Without an attacker, % of {options.samples} images (not in the worst case)"
        cells = [_attack_cells(row, options.samples) for row in controls]
        tables.append(TableText(title, _HEADER, tuple(cells), _partial(controls, options.samples), texts=2))
    return tuple(tables)


def goal_table(evaluation: Evaluation) -> TableText | None:
    """Attacks that want something else than to mislead; None: there are none."""
    options = evaluation.configuration
    rows = [row for row in evaluation.attacks if row.goal != "mislead"]
    if not rows:
        return None
    cells = tuple(
        (
            _name(row, options.samples),
            row.goal,
            _NORMS.get(row.norm or "", _NONE),
            _share(row.reached),
            interval(*row.reached_interval),
            _share(row.defended.flagged),
            _share(row.defended.label_accuracy),
            f"{row.defended.members_used:.1f}",
        )
        for row in rows
    )
    notes = (
        "wrong label: the final label is wrong, flagged or not. false alarm: flagged, though the classifier is right. "
        "slow down: all members were asked.",
        *_partial(rows, options.samples),
    )
    header = ("attack", "goal", "norm", "reached", "95%", "flagged", "label", "asked")
    return TableText(f"Other goals, % of {options.samples} images", header, cells, notes, texts=3)


def ablation_table(rows: Sequence[AblationRow], *, samples: int, eps: float) -> TableText:
    """Rows of the ablation, least defended first, in percent of the images."""
    cells = tuple(
        (
            harmless(row.name),
            _share(row.clean_accuracy),
            _share(row.oblivious_accuracy),
            _share(row.robust_accuracy),
            interval(*row.interval),
            _share(row.label_accuracy),
            f"{_share(row.clean_flagged)} / {_share(row.flagged)}",
            f"{row.members_used:.1f}",
            _NONE if row.milliseconds is None else f"{row.milliseconds:.2f}",
        )
        for row in rows
    )
    header = ("", "clean", "PGD", "adaptive", "95%", "label", "flagged", "asked", "ms")
    notes = tuple(harmless(f"{row.name}: {row.note}") for row in rows if row.note)
    return TableText(f"Ablation, % of {samples} images, l_inf eps {eps:g}", header, cells, notes)


def detection_table(detection: DetectionFigures) -> TableText:
    """The detector alone: area under the ROC curve, detection at two false-alarm rates, false alarms by base label."""
    cells = tuple(
        (
            row.attack,
            str(row.at_1_percent.count),
            _number(row.area.value),
            _NONE if math.isnan(row.area.low) else f"{_number(row.area.low)}-{_number(row.area.high)}",
            *_share_cells(row.at_1_percent),
            *_share_cells(row.at_5_percent),
        )
        for row in detection.rows
    )
    alarms = (
        ("all clean images", detection.false_alarms),
        ("of those that the classifier gets right", detection.false_alarms_base_right),
        ("of those that it gets wrong", detection.false_alarms_base_wrong),
    )
    said = tuple(
        f"false alarms, {what}: {_share(share.value)}% ({interval(share.low, share.high)}) of {share.count}"
        if share.count
        else f"false alarms, {what}: there are none"
        for what, share in alarms
    )
    header = ("attack", "images", "AUROC", "95%", "at 1%", "95%", "at 5%", "95%")
    notes = (
        "images whose base label was right and is wrong under the attack; at 1%, at 5%: % of them detected at that "
        "share of clean images flagged, whatever the threshold of the file is; AUROC without interval: fewer than "
        f"{FEWEST} images",
        *said,
    )
    return TableText("The detector alone", header, cells, notes)


def curve_tables(evaluation: Evaluation) -> tuple[TableText, ...]:
    """Robust accuracy over eps, steps and restarts; none where curves were not measured."""
    curves = evaluation.curves
    if curves is None:
        return ()
    named: tuple[tuple[str, tuple[CurvePoint, ...]], ...] = (
        ("eps", curves.eps),
        ("steps", curves.steps),
        ("restarts", curves.restarts),
    )
    return tuple(
        TableText(
            f"Over {name}, % of {curves.samples} images",
            (name, "robust", "95%", "label"),
            tuple(
                (f"{p.at:.3g}", _share(p.robust_accuracy), interval(*p.interval), _share(p.label_accuracy))
                for p in points
            ),
            (eps_curve_limits(evaluation.configuration.eps),) if name == "eps" else (),
        )
        for name, points in named
        if points
    )


def eps_curve_limits(eps: float) -> str:
    """What the curve over eps does not say."""
    return (
        "It falls by construction, since a point counts everything that was found inside its radius; radii other than "
        f"eps {eps:g} were attacked far less, so a better attack may find more there."
    )


def assumptions_table(evaluation: Evaluation) -> TableText:
    """What every attack wants, has and needs, and its paper."""
    rows = tuple(
        (row.name, row.goal, row.knows, _NORMS.get(row.norm or "", _NONE), row.assumes, row.source)
        for row in evaluation.attacks
    )
    header = ("attack", "wants", "knows", "norm", "assumes", "source")
    return TableText("What each attack assumes", header, rows, texts=6)


def configuration_table(evaluation: Evaluation) -> TableText:
    """Everything that is needed to do it again; names that come from files are made harmless."""
    options = evaluation.configuration
    rows = (
        ("command", options.command),
        ("model file", options.model),
        ("SHA-256 of its weights", options.weights_sha256),
        ("recipe", options.recipe),
        ("data", f"{options.data}, {options.samples} test images"),
        ("attacks", options.preset),
        ("budgets", f"l_inf eps {options.eps:g}, l2 {options.l2:g}, l0 {options.pixels} pixels"),
        ("work", ", ".join(f"{name} {value}" for name, value in options.budget.items())),
        ("seed", str(options.seed)),
        ("versions", ", ".join(f"{name} {value}" for name, value in options.versions.items())),
        ("machine", options.machine),
        ("time", f"{evaluation.seconds:.0f} s, interrupted runs included"),
    )
    return TableText("What was run", ("", ""), tuple((name, harmless(value)) for name, value in rows), texts=2)


def _main_table(evaluation: Evaluation, rows: list[AttackRow], budget: str) -> TableText:
    options, clean, worst = evaluation.configuration, evaluation.clean, evaluation.worst_case
    cells = [
        (
            "clean",
            "nothing",
            _share(evaluation.bare_clean.attack_success),
            _share(clean.attack_success),
            "",
            _share(clean.flagged),
            "",
            _share(clean.accuracy),
            f"{clean.members_used:.1f}",
        ),
        *(_attack_cells(row, options.samples) for row in rows),
        _worst_cells(
            worst.robust_accuracy_interval,
            worst.robust_accuracy,
            worst.label_accuracy,
            bare=_share(1 - evaluation.bare_worst_case.robust_accuracy),
        ),
    ]
    title = f"Attacks that win, l_inf {budget}, % of {options.samples} images"
    if evaluation.masked:
        title += ": NO MEASURE, gradients are masked"
    notes = _partial(rows, options.samples)
    if not labels_attacked(evaluation):
        notes += ("label: not attacked for; no attack that wants a wrong label was run on all images",)
    return TableText(title, _HEADER, tuple(cells), notes, texts=2)


def _attack_cells(row: AttackRow, samples: int) -> tuple[str, ...]:
    figures = row.defended
    return (
        _name(row, samples),
        "networks" if row.knows == "other networks" else row.knows,
        _NONE if row.bare is None else _share(row.bare.attack_success),
        _share(figures.attack_success),
        interval(*figures.attack_success_interval),
        _share(figures.flagged),
        _share(figures.corrected),
        _share(figures.label_accuracy),
        f"{figures.members_used:.1f}",
    )


def _worst_cells(robust: tuple[float, float], accuracy: float, label: float, *, bare: str = "") -> tuple[str, ...]:
    low, high = robust
    broken = interval(1 - high, 1 - low)
    return (WORST_CASE, "all", bare, _share(1 - accuracy), broken, "", "", _share(label), "")


def _name(row: AttackRow, samples: int) -> str:
    return f"{row.name} *" if row.samples < samples else row.name


def _partial(rows: Sequence[AttackRow], samples: int) -> tuple[str, ...]:
    short = [f"{row.name} {row.samples}" for row in rows if row.samples < samples]
    return (f"* not on all images: {', '.join(short)}",) if short else ()


def _share_cells(share: Share) -> tuple[str, str]:
    return _share(share.value), interval(share.low, share.high) if share.count else _NONE


def _share(share: float) -> str:
    return _NONE if math.isnan(share) else f"{100 * share:.1f}"


def _number(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.3f}"
