"""An evaluation as pictures: PNG files with what they show in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from s2ap_train.redteam.ablation.costs import BASELINES
from s2ap_train.redteam.report.words import in_worst_case
from s2ap_train.redteam.results import CurvePoint, Curves, DetectionFigures, Evaluation
from s2ap_train.reporting.page import COLOURS, Picture, axes_row, png

__all__ = ["baselines_plot", "composition_plot", "effort_plot", "eps_plot", "members_plot", "pictures", "roc_plot"]

_BLUE, _ORANGE = COLOURS[:2]
_GREY = "#777777"
_MOST_LINES = 6
"""Attacks in one picture, the strongest; the tables hold all."""
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def pictures(evaluation: Evaluation) -> dict[str, Picture]:
    """All pictures of what was measured: of baselines, composition, eps, effort, roc and members those that can be."""
    curves, detection = evaluation.curves, evaluation.detection
    found: dict[str, Picture] = {}
    if evaluation.comparisons:
        found["baselines"] = baselines_plot(evaluation)
    if any(in_worst_case(row) for row in evaluation.attacks):
        found["composition"] = composition_plot(evaluation)
    if curves is not None and curves.eps:
        found["eps"] = eps_plot(curves, evaluation.configuration.eps)
    if curves is not None and (curves.steps or curves.restarts):
        found["effort"] = effort_plot(curves)
    if detection is not None and detection.rows:
        found["roc"] = roc_plot(detection)
    if any(evaluation.members_used.values()):
        found["members"] = members_plot(evaluation.members_used)
    return found


def baselines_plot(evaluation: Evaluation) -> Picture:
    """Both figures of the file and of every baseline, with their intervals."""
    rows = [(name, row.worst_case) for name in BASELINES if (row := evaluation.row(name)) is not None]
    shown = [("this file", evaluation.worst_case), *rows]
    figure, (axis,) = axes_row(height=0.9 + 0.4 * len(shown))
    for offset, figure_name, colour in ((-0.18, "label", _ORANGE), (0.18, "robust", _BLUE)):
        values = np.array([getattr(left, f"{figure_name}_accuracy") for _, left in shown])
        ends = np.array([getattr(left, f"{figure_name}_accuracy_interval") for _, left in shown])
        axis.barh(
            np.arange(len(shown)) + offset,
            100 * values,
            height=0.34,
            color=colour,
            xerr=100 * np.abs(ends.T - values),
            error_kw={"linewidth": 1},
            label={"label": "label right", "robust": "right or flagged"}[figure_name],
        )
    axis.set_yticks(np.arange(len(shown)), [name for name, _ in shown])
    axis.invert_yaxis()
    axis.set_xlim(0, 102)
    axis.set_xlabel("images, %")
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
    return Picture(png(figure), "What is left under every attack, with 95 % intervals: the file and its baselines.")


def eps_plot(curves: Curves, eps: float) -> Picture:
    """Both figures over the l_inf budget, the interval of right-or-flagged; `eps`, of the other figures, is marked."""
    figure, (axis,) = axes_row()
    _curve(axis, curves.eps)
    axis.axvline(eps, color=_GREY, linestyle=":", label=f"eps {eps:g} of the tables")
    axis.set_xlabel("eps, pixels in [0, 1]")
    axis.set_xlim(left=0)
    axis.legend(frameon=False, fontsize=8)
    return Picture(
        png(figure), f"Right or flagged, and right, over eps on {curves.samples} images, 95 % interval shaded."
    )


def effort_plot(curves: Curves) -> Picture:
    """Both figures over the steps of the attack, on a logarithmic axis, and over its restarts."""
    figure, axes = axes_row(2)
    for axis, points, name in zip(axes, (curves.steps, curves.restarts), ("steps", "restarts"), strict=True):
        axis.set_xlabel(name)
        if not points:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=_GREY)
            continue
        _curve(axis, points)
        if name == "steps":
            axis.set_xscale("log")
            axis.set_xticks([point.at for point in points], [f"{point.at:g}" for point in points])
            axis.minorticks_off()
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False, fontsize=8)
    return Picture(png(figure), f"Right or flagged, and right, over the attacker's effort on {curves.samples} images.")


def roc_plot(detection: DetectionFigures) -> Picture:
    """ROC curves of the detector, those attacks that it detects worst; the served false-alarm rate is marked."""
    rows = sorted(detection.rows, key=lambda row: (row.area.value, row.attack))[:_MOST_LINES]
    figure, (axis,) = axes_row()
    for number, row in enumerate(rows):
        axis.plot(
            row.roc["false_alarm_rate"],
            row.roc["detection_rate"],
            color=COLOURS[number],
            linestyle=_LINES[number],
            label=f"{row.attack}, area {row.area.value:.3f}",
        )
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=0.8, label="chance")
    axis.axvline(detection.false_alarms.value, color=_GREY, linestyle=":", label="false alarms of the file")
    axis.set_xlabel("false-alarm rate")
    axis.set_ylabel("detection rate")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    fewer = f", the {len(rows)} attacks that it detects worst" if len(rows) < len(detection.rows) else ""
    return Picture(png(figure), f"ROC of the detector alone{fewer}; the file flags clean images at the dotted line.")


def members_plot(members_used: Mapping[str, Sequence[int]]) -> Picture:
    """How many members are asked: clean images next to the attacks under which most are."""
    attacks = [name for name, counts in members_used.items() if name != "clean" and len(counts)]
    shown = sorted(attacks, key=lambda name: (-np.mean(members_used[name]), name))[:3]
    names = [*(["clean"] if len(members_used.get("clean", ())) else []), *shown]
    most = max(int(np.max(members_used[name])) for name in names)
    figure, (axis,) = axes_row()
    for number, name in enumerate(names):
        shares = 100 * np.bincount(members_used[name], minlength=most + 1) / len(members_used[name])
        place = np.arange(most + 1) + 0.8 * ((number + 0.5) / len(names) - 0.5)
        axis.bar(place, shares, width=0.8 / len(names), color=COLOURS[number], label=name)
    axis.set_xlabel("members asked")
    axis.set_ylabel("images, %")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8)
    return Picture(png(figure), "Members asked for an image: clean, and under the attacks that ask most.")


def composition_plot(evaluation: Evaluation) -> Picture:
    """Of the worst case: how many images each l_inf attack broke at all, and how many it alone broke."""
    rows = [row for row in evaluation.attacks if in_worst_case(row)]
    worst, samples = evaluation.worst_case, evaluation.configuration.samples
    names = ["clean", *(row.name for row in rows)]
    broke = [
        round(evaluation.clean.attack_success * samples),
        *(round(row.defended.attack_success * row.samples) for row in rows),
    ]
    alone = [worst.broken_only_by.get(name, 0) for name in names]
    figure, (axis,) = axes_row(height=0.8 + 0.26 * len(names))
    place = np.arange(len(names))
    axis.barh(place, broke, color=COLOURS[5], label="broke")
    axis.barh(place, alone, color=_BLUE, height=0.4, label="alone broke")
    axis.set_yticks(place, names)
    axis.invert_yaxis()
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    total = round((1 - worst.robust_accuracy) * samples)
    axis.axvline(total, color=_GREY, linestyle=":", label=f"worst case, {total} of {samples}")
    axis.set_xlim(left=0, right=max(total, *broke, 1) * 1.05)
    axis.set_xlabel("images")
    axis.legend(frameon=False, fontsize=8)
    return Picture(
        png(figure),
        f"What the worst case is made of: {total} of {samples} images are broken by some l_inf attack or wrong without "
        "one. An attack that alone breaks many says that the others are too weak.",
    )


def _curve(axis: Axes, points: Sequence[CurvePoint]) -> None:
    at = [point.at for point in points]
    low, high = ([100 * point.interval[end] for point in points] for end in (0, 1))
    axis.fill_between(at, low, high, color=_BLUE, alpha=0.2, linewidth=0)
    lines: tuple[tuple[str, str, str, Callable[[CurvePoint], float]], ...] = (
        ("right or flagged", _BLUE, "o", lambda point: point.robust_accuracy),
        ("label right", _ORANGE, "s", lambda point: point.label_accuracy),
    )
    for label, colour, marker, value in lines:
        axis.plot(at, [100 * value(point) for point in points], color=colour, marker=marker, markersize=4, label=label)
    axis.set_ylabel("images, %")
    axis.set_ylim(0, 102)
