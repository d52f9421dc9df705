"""An evaluation on the terminal, and as JSON."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from rich.console import Console

from s2ap_defend.tables import harmless
from s2ap_train.page import TableText, print_line, print_table
from s2ap_train.redteam.ablation.costs import IN_SHORT
from s2ap_train.redteam.report.effects import against_pruned_in_words, cost_in_words
from s2ap_train.redteam.report.guide import ABLATION_LEGEND, COSTS_LEGEND, HOW_TO_READ
from s2ap_train.redteam.report.tables import (
    ablation_table,
    attack_tables,
    curve_tables,
    detection_table,
    goal_table,
)
from s2ap_train.redteam.report.words import (
    caveats,
    check_result,
    found_in_words,
    headline,
    search_in_words,
    unanswered,
    verdict,
)
from s2ap_train.redteam.results import AblationRow, AttackRow, Check, Evaluation, PartCost
from s2ap_train.statistics.paired import PairedDifference

__all__ = ["print_ablation", "print_evaluation", "print_summary", "rejecting_in_words", "to_json"]

_WIDTH = 100


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print everything but the pictures: what decides first, failed checks before any figure that they spoil."""
    _print_head(evaluation, console)
    for table in attack_tables(evaluation):
        _print_table(table, console)
    _say(search_in_words(evaluation), console)
    _say(unanswered(evaluation), console)
    print_line("\nHow to read it", console)
    for text in HOW_TO_READ:
        _say(f"- {text}", console, indent="  ")
    goals = goal_table(evaluation)
    if goals is not None:
        _print_table(goals, console)
    if evaluation.detection is not None:
        _print_table(detection_table(evaluation.detection), console)
    for table in curve_tables(evaluation):
        _print_table(table, console)
    if evaluation.checks:
        print_line("\nSanity checks (Carlini et al. 2019, arXiv 1902.06705)", console)
        for check in evaluation.checks:
            _print_check(check, console)
    if evaluation.ablation or evaluation.costs or evaluation.against_pruned is not None:
        options = evaluation.configuration
        print_ablation(
            evaluation.ablation,
            console,
            samples=options.samples,
            eps=options.eps,
            costs=evaluation.costs,
            against_pruned=evaluation.against_pruned,
        )
    _say(rejecting_in_words(evaluation), console)
    if evaluation.not_run:
        print_line("\nNot run, or not on all images", console)
        for name, why in evaluation.not_run.items():
            _say(f"- {name}: {why}", console, indent="  ")
    _say(f"{evaluation.seconds:.0f} s of attacks", console)


def print_summary(evaluation: Evaluation, console: Console) -> None:
    """Print the verdict, what limits it, and the table of less and less defence; `print_evaluation` prints all."""
    _print_head(evaluation, console)
    options = evaluation.configuration
    print_ablation(
        evaluation.ablation,
        console,
        samples=options.samples,
        eps=options.eps,
        costs=[cost for cost in evaluation.costs if (cost.part, cost.measure) in IN_SHORT],
        against_pruned=evaluation.against_pruned,
    )
    _say(rejecting_in_words(evaluation), console)


def print_ablation(
    rows: Sequence[AblationRow],
    console: Console,
    *,
    samples: int,
    eps: float,
    costs: Sequence[PartCost] = (),
    against_pruned: PairedDifference | None = None,
) -> None:
    """Print the table of less and less defence, how to read it, and what each part adds or costs.

    Args:
        rows: Least defended first; none: only the sentences are printed.
        console: Where.
        samples: Test images.
        eps: l_inf budget, pixels in [0, 1].
        costs: Of the parts of the chain.
        against_pruned: The full defence against its own pruned classifier.
    """
    if rows:
        _print_table(ablation_table(rows, samples=samples, eps=eps), console)
        for line in ABLATION_LEGEND:
            _say(f"- {line}", console, indent="  ")
    if costs:
        print_line("\nWhat each part adds or costs, on the same images", console)
        for cost in costs:
            _say(f"- {cost_in_words(cost)}", console, indent="  ")
        _say(f"  {COSTS_LEGEND}", console, indent="  ")
    if against_pruned is not None:
        _say(against_pruned_in_words(against_pruned), console)


def rejecting_in_words(evaluation: Evaluation) -> str:
    """What the worst case leaves of a file that rejects what it flags."""
    return (
        f"With reject instead of correct, {100 * evaluation.rejecting_label_accuracy:.1f}% of the images are answered, "
        "and rightly, under every attack; what is flagged gets no answer then."
    )


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """As JSON values: the file's figures at the top, the bare classifier's under `bare`; no NaN, no pictures.

    The keys are an interface (docs/evaluation.md). What is not a number is null.
    """
    options = evaluation.configuration
    attacks = {row.name: _attack_json(row) for row in evaluation.attacks}
    bare = {row.name: row.bare for row in evaluation.attacks if row.bare is not None}
    said = verdict(evaluation)
    return {
        "clean": _plain(evaluation.clean),
        "attacks": attacks,
        "worst_case": _plain(evaluation.worst_case),
        "bare": _plain(
            {"clean": evaluation.bare_clean, "attacks": bare, "worst_case": evaluation.bare_worst_case},
        ),
        "samples": options.samples,
        "norm": "linf",
        "eps": options.eps,
        "l2": options.l2,
        "pixels": options.pixels,
        "seed": options.seed,
        "seconds": _plain(evaluation.seconds),
        "weights_sha256": options.weights_sha256,
        "versions": _plain(options.versions),
        "configuration": {
            name: _plain(getattr(options, name))
            for name in ("command", "model", "recipe", "data", "preset", "budget", "machine")
        },
        "masked": evaluation.masked,
        "verdict": _plain(said),
        "not_run": _plain(evaluation.not_run),
        "worst_case_by_norm": _plain(evaluation.worst_case_by_norm),
        "rejecting_label_accuracy": _plain(evaluation.rejecting_label_accuracy),
        "detection": _plain(evaluation.detection),
        "members_used": _plain(evaluation.members_used),
        "curves": _plain(evaluation.curves),
        "checks": [{**_plain(check), "result": check_result(check)} for check in evaluation.checks],
        "ablation": _plain(evaluation.ablation),
        "against_pruned": _plain(evaluation.against_pruned),
        "costs": _plain(evaluation.costs),
    }


def _attack_json(row: AttackRow) -> dict[str, Any]:
    """The figures at the top, as the interface has them, and what the attack is beside them."""
    about = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in {"name", "defended", "bare"}}
    return {**_plain(row.defended), **_plain(about)}


def _plain(value: Any) -> Any:  # noqa: ANN401
    """JSON values of dataclasses, mappings, sequences, arrays and numbers; NaN and infinities are null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"an evaluation holds a {type(value).__name__}, which JSON has not: {value!r}")


def _print_table(table: TableText, console: Console) -> None:
    """A table, its notes as paragraphs that fit the console."""
    print_table(replace(table, notes=()), console)
    for note in table.notes:
        _say(f"  {note}", console, indent="    ")


def _print_head(evaluation: Evaluation, console: Console) -> None:
    """Verdict, failed checks, headline, and what limits it."""
    said = verdict(evaluation)
    failed = [check for check in evaluation.checks if check.passed is False]
    _say(f"{said.title.upper() if said.level != 'measured' else said.title}. {said.text}", console)
    for check in failed:
        _print_check(check, console)
    _say(headline(evaluation), console)
    for caveat in caveats(evaluation):
        _say(f"- {caveat}", console, indent="  ")


def _print_check(check: Check, console: Console) -> None:
    found = found_in_words(check)
    _say(f"  {check_result(check):<11} {check.name}{f': {found}' if found else ''}", console, indent=" " * 14)
    _say(f"{' ' * 14}{check.meaning}", console, indent=" " * 14)


def _say(text: str, console: Console, *, indent: str = "") -> None:
    """Print a paragraph that fits the console; nothing when it is empty."""
    width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
    if text:
        print_line(textwrap.fill(harmless(text), width, subsequent_indent=indent, break_on_hyphens=False), console)
