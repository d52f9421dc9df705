"""A comparison as pictures: bars over methods with one standard deviation, and masks over epochs. PNG, Agg only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from s2ap_train.commands.compare.comparison import Comparison
from s2ap_train.commands.compare.groups import Group, Setting, Summary, epoch_flips
from s2ap_train.reporting.page import COLOURS, lighten, png

Draw = Callable[[Sequence[Axes], list[Group], Mapping[str, str]], None]
"""Draws the groups of one setting into a row of axes; colours by the group's name."""
_WIDTH_INCHES = 9.0
_PANEL_INCHES = 2.7
_LEGEND_INCHES = 0.28
_DPI = 120
_MAX_PANELS = 40
"""Settings that are drawn, the first ones; the tables hold all."""


def accuracy_plot(comparison: Comparison) -> bytes:
    """Clean, mask robust and robust accuracy of every method, a row of bars for each setting; a PNG file."""
    keys = (("clean_accuracy", "clean"), ("mask_robust_accuracy", "mask robust"), ("robust_accuracy", "robust"))

    def draw(axes: Sequence[Axes], groups: list[Group], colours: Mapping[str, str]) -> None:
        for number, group in enumerate(groups):
            for place, (key, _) in enumerate(keys):
                _bar(
                    axes[0],
                    place + _offset(number, len(groups)),
                    len(groups),
                    group.summary(key),
                    colours[group.name],
                    100,
                )
        axes[0].set_xticks(range(len(keys)), [title for _, title in keys])
        axes[0].set_ylim(0, 100)
        axes[0].set_ylabel("accuracy, %")

    return _figure(comparison, 1, draw)


def sharpness_plot(comparison: Comparison) -> bytes:
    """Sharpness by real mask changes next to the surrogate's largest eigenvalue; a PNG file."""
    keys = (
        ("sharpness", "sharpness (real mask changes)"),
        ("hessian_eigenvalue", "lambda max (surrogate)"),
        ("hessian_eigenvalue_relative", "lambda max, relative"),
    )

    def draw(axes: Sequence[Axes], groups: list[Group], colours: Mapping[str, str]) -> None:
        for axis, (key, title) in zip(axes, keys, strict=True):
            for number, group in enumerate(groups):
                _bar(axis, number, 1, group.summary(key), colours[group.name], 1)
            axis.set_xticks([])
            axis.set_xlabel(title)

    return _figure(comparison, len(keys), draw)


def stability_plot(comparison: Comparison) -> bytes:
    """Kept weights that the next epoch replaces, and that another seed replaces next to chance; a PNG file."""

    def draw(axes: Sequence[Axes], groups: list[Group], colours: Mapping[str, str]) -> None:
        for number, group in enumerate(groups):
            epochs = [flips for flips in map(epoch_flips, group.runs) if flips]
            if epochs:
                length = min(map(len, epochs))  # a collapsed run is shorter
                means = [100 * fmean(flips[epoch] for flips in epochs) for epoch in range(length)]
                axes[0].plot(range(length), means, color=colours[group.name], marker="o", markersize=3)
            if group.stability is not None:
                values = Summary(tuple(distance.flip_rate for distance in group.stability.distances))
                _bar(axes[1], number, 1, values, colours[group.name], 100)
                chance = 100 * group.stability.mean.chance
                axes[1].plot([number - 0.4, number + 0.4], [chance, chance], color="#444444", linestyle="--")
        axes[0].set_ylabel("kept weights replaced, %")
        axes[0].set_xlabel("epoch of the mask search")
        axes[0].set_ylim(bottom=0)
        axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1].set_xticks([])
        axes[1].set_ylim(bottom=0)
        axes[1].set_xlabel("between seeds (dashed: chance)")

    return _figure(comparison, 2, draw)


def _figure(comparison: Comparison, columns: int, draw: Draw) -> bytes:
    """A row of panels for each setting, its title above and its methods in a legend; as a PNG file."""
    names = dict.fromkeys(group.name for group in comparison.groups)
    colours = dict(zip(names, itertools.cycle(COLOURS), strict=False))  # a method has one colour in every panel
    rows: list[tuple[Setting, list[Group]]] = []
    for setting in list(dict.fromkeys(group.setting for group in comparison.groups))[:_MAX_PANELS]:
        rows.append((setting, [group for group in comparison.groups if group.setting == setting]))
    heights = [_PANEL_INCHES + _LEGEND_INCHES * len(groups) for _, groups in rows]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), dpi=_DPI, layout="constrained")
    panels = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)
    for panel, (setting, groups) in zip(panels[:, 0], rows, strict=True):
        panel.suptitle(_plain(str(setting)), fontsize=10)
        axes = panel.subplots(1, columns, squeeze=False)[0]
        draw(axes, groups, colours)
        for axis in axes:
            if not axis.has_data():
                axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="#555555")
                axis.set_yticks([])
            lighten(axis)
        handles = [Patch(color=colours[group.name]) for group in groups]
        labels = [f"{_plain(group.name)}, {len(group.seeds)} seed{'s' * (len(group.seeds) > 1)}" for group in groups]
        panel.legend(handles, labels, loc="outside lower left", fontsize=8, frameon=False)
    return png(figure)


def _bar(axis: Axes, place: float, shared_by: int, summary: Summary, colour: str, scale: float) -> None:
    """One bar with one standard deviation; nothing where nothing was measured."""
    if summary.mean is None:
        return
    axis.bar(
        place,
        scale * summary.mean,
        width=0.8 / shared_by,
        yerr=None if summary.std is None else scale * summary.std,
        capsize=3,
        color=colour,
    )


def _offset(number: int, count: int) -> float:
    return 0.8 * ((number + 0.5) / count - 0.5)


def _plain(text: str) -> str:
    """Names are not mathematics: a dollar sign is itself."""
    return text.replace("$", r"\$")
