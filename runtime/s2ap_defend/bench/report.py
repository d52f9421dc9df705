"""The figures as tables, sentences and JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from s2ap_defend.bench.choices import Clock
from s2ap_defend.bench.goals import Goal, elsewhere, goals, not_judged
from s2ap_defend.bench.machine import describe_machine
from s2ap_defend.bench.measured import BARE, BatchTimes, Measured
from s2ap_defend.bench.rounds import Latency
from s2ap_defend.bench.traffic import Traffic
from s2ap_defend.executors import ExecutorName
from s2ap_defend.manifest import Manifest
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope
from s2ap_defend.tables import plain_table, print_table

BUSY = 0.1
"""Share of the time without a processor from which on the wall clock misleads."""
_BUSY_MEANS: Mapping[Clock, str] = {
    "wall": "That lengthens long calls more than short ones and makes multiples too large; --clock processor counts "
    "what was computed.",
    "processor": "Whoever had it empties caches, so what is outside the engines took up to twice as long as alone.",
}
_OUTSIDE, _BEYOND = _OVERHEADS = ("outside the engines", "beyond the stages")
"""What an executor adds: timed within its calls, and as what they take more than the stages alone."""


def as_json(measured: Measured, traffic: Traffic, manifest: Manifest, command: list[str]) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "command": command,
        "machine": describe_machine(),
        "traffic": {"kind": traffic.kind, "source": traffic.source, "typical": traffic.typical},
        "purify": manifest.decision.purify,
        **asdict(measured),
        "goals": [asdict(goal) | {"holds": goal.holds} for goal in goals(measured, traffic, manifest.decision.purify)],
        "not_judged": not_judged(measured, traffic),
        "not_measured": elsewhere(measured),
        "measured_accuracy": [row.model_dump() for row in manifest.measured],
    }


def print_report(measured: Measured, traffic: Traffic, manifest: Manifest, console: Console) -> None:
    """Print the tables, what of the goals is missed and where the time goes."""

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    print_table(_latency_table(measured), console)
    print_table(_stage_table(measured, manifest), console)
    reached = measured.ceilings
    say(
        f"Floor: convolutions and products over {reached.flops_per_s / 1e9:.3g} GFLOP/s, or weights and images over "
        f"{reached.bytes_per_s / 1e9:.3g} GB/s, the best a matrix product and a pass over memory reached in this run."
    )
    if (measured.waited or 0) > BUSY:
        say(f"Warning: this process had no processor {measured.waited:.0%} of the time. {_BUSY_MEANS[measured.clock]}")
    for line in (*_memory_lines(measured), *_accuracy_lines(manifest), *_goal_lines(measured, traffic, manifest)):
        say(line)


def where_time_goes(measured: Measured, goal: Goal, manifest: Manifest) -> str:
    """Where the time goes that is too much, in words; of a goal for one batch size."""
    (one,) = (one for one in measured.batches if one.batch == goal.batch)
    if goal.unit == "x":
        return _dearest(one, goal, manifest)
    if _BEYOND in goal.what:
        return "the test, and what leads images from stage to stage, in its engine"
    spent = one.outside_parts[goal.executor]
    return (
        f"{1e3 * spent.before_ms:,.0f} us before the first run of an engine, {1e3 * spent.between_ms:,.0f} us between "
        f"{spent.runs:.3g} runs, {1e3 * spent.behind_ms:,.0f} us behind the last"
    )


def _latency_table(measured: Measured) -> Table:
    seconds = {"wall": "Time", "processor": "Processor time"}[measured.clock]
    title = f"{seconds} of a call on {measured.provider}, {measured.rounds} rounds"
    columns = ("batch", "", "p50 ms", "p95", "p99", "images/s", "x bare", "x floor", "asked", "flagged", "purified")
    table = plain_table(*columns, title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for one in measured.batches:
        table.add_row(str(one.batch), BARE, *_cells(one.bare), "", "", "")
        for name, found in one.executors.items():
            seen = (f"{one.members_asked:.1f}", f"{one.flagged:.0%}", f"{one.purified:.0%}")
            table.add_row("", name, *_cells(found), *seen)
    return table


def _cells(found: Latency) -> tuple[str, ...]:
    quantiles = (f"{found.p50_ms:.3g}", _or_dash(found.p95_ms), _or_dash(found.p99_ms))
    return (*quantiles, f"{found.images_per_s:,.0f}", f"{found.times_bare:.3g}", _or_dash(found.times_floor))


def _count(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _stage_table(measured: Measured, manifest: Manifest) -> Table:
    title = "Where the time goes: multiples of the bare classifier (images of a batch that are asked)"
    table = plain_table("", *(f"batch {one.batch}" for one in measured.batches), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    parts = [_parts(one, manifest) for one in measured.batches]
    for i, (name, _, _) in enumerate(parts[0]):
        table.add_row(name, *(f"{of[i][1]:.3g} ({_count(of[i][2])})" for of in parts))
    for name in measured.batches[0].executors:
        for what in _OVERHEADS:
            spent = [_overhead(one, name, what) for one in measured.batches]
            table.add_row(f"{name}: {what}", *(f"{value:.3g}" for value in spent))
    table.add_row("floor of all, of the bare floor", *(_or_dash(one.floor_times_bare) for one in measured.batches))
    return table


def _overhead(one: BatchTimes, name: ExecutorName, what: str) -> float:
    """What an executor spends there, as a multiple of the bare classifier's time."""
    shares = one.outside_share if what == _OUTSIDE else one.beyond_share
    return shares[name] * one.executors[name].times_bare


def _parts(one: BatchTimes, manifest: Manifest) -> list[tuple[str, float, float]]:
    """Groups of stages: name, multiple of the bare classifier, images asked (of members: their sum)."""
    opening = {member_scope(i) for i in range(manifest.test.opening)}
    later = len(manifest.members) - len(opening)
    names = {PURIFIER: "purifier", CLASSIFIER: "classifier", CLASSIFIER_AGAIN: "classifier, on purified images"}
    members = (f"opening, {len(opening)} members", f"later members, {later}")
    groups: dict[str, tuple[float, float]] = {}
    for stage in one.stages:
        name = names.get(stage.scope) or members[stage.scope not in opening]
        cost, rows = groups.get(name, (0.0, 0.0))
        groups[name] = (cost + stage.times_bare, rows + stage.rows)
    return [(name, cost, rows) for name, (cost, rows) in groups.items()]


def _memory_lines(measured: Measured) -> Iterator[str]:
    bare, largest = measured.memory[BARE], measured.batches[-1].batch
    for name, used in measured.memory.items():
        if used is not None and bare is not None:
            more = "" if name == BARE else f", {used.ready_bytes / max(bare.ready_bytes, 1):.3g}x the bare classifier's"
            yield f"Memory, {name}: {used.ready_bytes / 1e6:.1f} MB resident at batch {largest}{more}"


def _accuracy_lines(manifest: Manifest) -> Iterator[str]:
    attacked = [row for row in manifest.measured if row.eps > 0]
    if not attacked:
        yield "No accuracy under attack was measured on this file, so nothing says what this cost buys: evaluate it."
        return
    worst = min(attacked, key=lambda row: (row.label_accuracy, row.robust_accuracy))
    yield (
        f"What it buys, under the worst attack measured on this file ({worst.attack}, eps {worst.eps:g}, "
        f"{worst.samples} images): {worst.label_accuracy:.1%} labels right, {worst.robust_accuracy:.1%} right or "
        f"flagged; the bare classifier {worst.bare_accuracy:.1%}."
    )


def _goal_lines(measured: Measured, traffic: Traffic, manifest: Manifest) -> Iterator[str]:
    for goal in goals(measured, traffic, manifest.decision.purify):
        found, most = (_amount(goal, value) for value in (goal.found, goal.most))
        where = "" if goal.holds or goal.batch is None else f"; {where_time_goes(measured, goal, manifest)}"
        yield f"{'holds ' if goal.holds else 'MISSED'}  {goal.executor}, {goal.what}: {found}, at most {most}{where}"
    for reason in not_judged(measured, traffic):
        yield f"not judged: {reason}"
    for what in elsewhere(measured):
        yield f"not measured here: {what}"


def _dearest(one: BatchTimes, goal: Goal, manifest: Manifest) -> str:
    """The parts that cost most where a cost is too large."""
    parts = {name: cost for name, cost, _ in _parts(one, manifest)}
    parts[_BEYOND] = _overhead(one, goal.executor, _BEYOND)
    dearest = sorted(parts, key=lambda name: -parts[name])[:3]
    return ", ".join(f"{name} {parts[name]:.3g}x" for name in dearest)


def _amount(goal: Goal, value: float) -> str:
    return f"{value:.1%}" if goal.unit == "share" else f"{value:.3g}{goal.unit}"
