"""Plots of the detection benchmark: ROC, label change rates, members asked, sequential paths."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from detection_groups import CalibratedGroup, Judged
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from s2ap_defend.sequential import log_likelihood_path
from s2ap_train.calibration import Answers
from s2ap_train.statistics.detection import roc_points

PATHS = 25
"""Inputs of each kind whose evidence is drawn."""


def plot(
    file: Path, test: CalibratedGroup, judged: Mapping[str, Judged], answers: Mapping[str, Answers], shown: str
) -> None:
    """Write one picture with four plots.

    Args:
        file: PNG file.
        test: The calibrated test of the mix.
        judged: What it made of every set; 'clean' is one.
        answers: Answers to the clean images ('clean') and to those of the attack `shown`.
        shown: The attack whose inputs are in the histograms and among the paths.
    """
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "s2ap-defend"}):
        figure = Figure(figsize=(10, 7.5), layout="constrained")
        FigureCanvasAgg(figure)
        roc, rates, members, paths = figure.subplots(2, 2).flat
        _roc(roc, judged)
        _label_change_rates(rates, judged, answers, shown)
        _members(members, judged, shown, test.test.members)
        _paths(paths, test, judged, answers, shown)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}.png")
        figure.savefig(beside, dpi=110, metadata={"Software": None})
        beside.replace(file)


def _roc(axes: Axes, judged: Mapping[str, Judged]) -> None:
    clean = judged["clean"]
    attacked = {name: found for name, found in judged.items() if name != "clean" and found.chosen.any()}
    colours = mpl.colormaps["tab20"].resampled(len(attacked)).colors
    for (name, found), colour in zip(attacked.items(), colours, strict=True):
        points = roc_points(clean.statistic[clean.chosen], found.statistic[found.chosen])
        style = "--" if name.startswith("joint") else "-"
        axes.plot(points["false_alarm_rate"], points["detection_rate"], style, color=colour, label=name, linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false-alarm rate", ylabel="detection rate")
    axes.set_xscale("symlog", linthresh=0.01)
    axes.legend(fontsize=6, loc="lower right")
    axes.set_title("ROC of the alarm statistic, inputs that fool the base")


def _label_change_rates(axes: Axes, judged: Mapping[str, Judged], answers: Mapping[str, Answers], shown: str) -> None:
    for name in ("clean", shown):
        rates = answers[name].disagreements.mean(axis=0)[judged[name].chosen]
        axes.hist(rates, bins=np.linspace(0, 1, 21), density=True, alpha=0.6, label=name)
    axes.set(xlabel="label change rate of all members", ylabel="density")
    axes.legend()
    axes.set_title("Label change rates")


def _members(axes: Axes, judged: Mapping[str, Judged], shown: str, members: int) -> None:
    edges = np.arange(members + 1) + 0.5
    for name in ("clean", shown):
        axes.hist(judged[name].members_used[judged[name].chosen], bins=edges, density=True, alpha=0.6, label=name)
    axes.set(xlabel="members asked, the vote included", ylabel="share of inputs")
    axes.legend()
    axes.set_title("Members asked")


def _paths(
    axes: Axes, test: CalibratedGroup, judged: Mapping[str, Judged], answers: Mapping[str, Answers], shown: str
) -> None:
    order = test.calibration.order
    for name, colour in (("clean", "tab:blue"), (shown, "tab:red")):
        rows = np.flatnonzero(judged[name].chosen)[:PATHS]
        ordered = answers[name].reorder(order)
        track = log_likelihood_path(test.test, ordered.said)[0][:, rows]
        for path, stop in zip(track.T, judged[name].decided_after[rows], strict=True):
            axes.plot(np.arange(stop + 1), [0.0, *path[:stop]], color=colour, alpha=0.4, linewidth=0.8)
    asked = np.arange(1, test.test.members + 1)
    for boundary, label in ((test.test.upper, "adversarial"), (test.test.lower, "clean")):
        axes.step(asked, np.where(np.isfinite(boundary), boundary, np.nan), "k--", where="mid", linewidth=1)
        finite = boundary[np.isfinite(boundary)]
        if len(finite):
            axes.annotate(label, (asked[-1], finite[-1]), ha="right", va="bottom")
    axes.set(xlabel="members asked", ylabel="log-likelihood ratio, nats")
    axes.set_title(f"Evidence until the decision: clean (blue), {shown} (red)")
