"""An evaluation in sections, on the terminal, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np
from rich.console import Console

from s2ap_train.redteam.ablation.costs import IN_SHORT
from s2ap_train.redteam.ablation.names import CONFIDENCE, PRUNED
from s2ap_train.redteam.report.baselines import HOLDS, baseline_tables, requirements
from s2ap_train.redteam.report.pairs import cost_in_words, standing
from s2ap_train.redteam.report.tables import ablation_table, attack_tables, curve_table, detection_table, goal_table
from s2ap_train.redteam.report.verdict import verdict
from s2ap_train.redteam.report.words import caveats, headline, percent, search_in_words, unanswered
from s2ap_train.redteam.results import AttackRow, Check, Evaluation
from s2ap_train.redteam.rows import AblationRow
from s2ap_train.reporting.page import Block, Point, print_blocks

__all__ = ["print_evaluation", "print_summary", "sections", "to_json"]

_RESULTS = {True: "passed", False: "FAILED", None: "not judged"}


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print everything but the pictures: what decides first, failed checks before any figure that they spoil."""
    seconds = f"{evaluation.seconds:.0f} s of attacks"
    print_blocks([*_head(evaluation), *chain(*sections(evaluation).values()), seconds], console)


def print_summary(evaluation: Evaluation, console: Console) -> None:
    """Print the verdict, what is weak, the baselines, what must hold and the ablation; `print_evaluation` all."""
    shown = [*weaknesses(evaluation), *baseline_tables(evaluation), *requirements(evaluation.must_hold)]
    print_blocks([*_head(evaluation), *shown, *_parts(evaluation, short=True)], console)


def sections(evaluation: Evaluation) -> dict[str, list[Block]]:
    """What was found by section, as the terminal and the page show it; what was not measured is empty."""
    detection, not_run = evaluation.detection, evaluation.not_run
    results = [_RESULTS[check.passed] for check in evaluation.checks]
    counts = ", ".join(f"{results.count(result)} {result}" for result in _RESULTS.values())
    return {
        "weak": weaknesses(evaluation),
        "baselines": baseline_tables(evaluation),
        "must-hold": requirements(evaluation.must_hold),
        "attacks": [
            *attack_tables(evaluation),
            search_in_words(evaluation),
            unanswered(evaluation),
            goal_table(evaluation) or "",
            "Not run, or not on all images:" if not_run else "",
            [f"{name}: {why}" for name, why in not_run.items()],
        ],
        "checks": [
            f"Sanity checks of the attack, not of the defence (Carlini et al. 2019, arXiv 1902.06705): {counts}."
            if results
            else "No sanity check was run: nothing says whether the attacks worked as they should.",
            list(map(_check, evaluation.checks)),
        ],
        "effort": [curve_table(evaluation) or ""],
        "detector": [detection_table(detection) if detection is not None else ""],
        "parts": _parts(evaluation),
    }


def weaknesses(evaluation: Evaluation) -> list[Block]:
    """What of the file is weaker than it was meant to be; empty where nothing is."""
    found = evaluation.configuration.weaknesses
    return ["What is weak in the file, next to what its recipe asked for:", list(found)] if found else []


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """As JSON values: the file's figures at the top, those of others under their names; no NaN, no pictures.

    `bare` is the classifier of the file, `pruned` its first juror, `pruned_confidence` the same with its least
    confident inputs flagged; null: it was not measured.

    The keys are an interface (docs/evaluation.md). What is not a number is null.
    """
    options = evaluation.configuration
    bare = {row.name: row.bare for row in evaluation.attacks if row.bare is not None}
    found = ("seconds", "masked", "not_run", "worst_case_by_norm", "rejecting_label_accuracy", "detection")
    parts = ("members_used", "curves", "ablation", "costs")
    about = ("samples", "eps", "l2", "pixels", "seed", "weights_sha256", "versions")
    return {
        "clean": _plain(evaluation.clean),
        "attacks": {row.name: _attack_json(row) for row in evaluation.attacks},
        "worst_case": _plain(evaluation.worst_case),
        "bare": _plain({"clean": evaluation.bare_clean, "attacks": bare, "worst_case": evaluation.bare_worst_case}),
        "pruned": _row_json(evaluation.row(PRUNED)),
        "pruned_confidence": _row_json(evaluation.row(CONFIDENCE)),
        "norm": "linf",
        **{name: _plain(getattr(options, name)) for name in about},
        "configuration": {f.name: _plain(getattr(options, f.name)) for f in fields(options) if f.name not in about},
        "verdict": _plain(verdict(evaluation)),
        "checks": [{**_plain(check), "result": _RESULTS[check.passed]} for check in evaluation.checks],
        "comparisons": [{**_plain(one), "standing": standing(one.effect)} for one in evaluation.comparisons],
        "must_hold": [{**_plain(one), "result": HOLDS[one.holds]} for one in evaluation.must_hold],
        **{name: _plain(getattr(evaluation, name)) for name in (*found, *parts)},
    }


def _row_json(row: AblationRow | None) -> dict[str, Any] | None:
    """The figures of a baseline, under the keys that those of the file have."""
    if row is None:
        return None
    clean = {"accuracy": row.clean_accuracy, "flagged": row.clean_flagged, "members_used": row.members_used}
    return {"clean": clean, "worst_case": _plain(row.worst_case)}


def _attack_json(row: AttackRow) -> dict[str, Any]:
    """The figures at the top, as the interface has them, and what the attack is next to them."""
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


def _head(evaluation: Evaluation) -> list[Block]:
    """Verdict, failed checks, headline, and what limits it."""
    said = verdict(evaluation)
    title = said.title if said.level == "measured" else said.title.upper()
    failed = [_check(check) for check in evaluation.checks if check.passed is False]
    return [f"{title}. {said.text}", failed, headline(evaluation), caveats(evaluation)]


def _parts(evaluation: Evaluation, *, short: bool = False) -> list[Block]:
    """The ablation, and what each part adds or costs, of which `short` leaves some out."""
    rows, options = evaluation.ablation, evaluation.configuration
    costs = [cost for cost in evaluation.costs if not short or (cost.part, cost.measure) in IN_SHORT]
    return [
        ablation_table(rows, samples=options.samples, eps=options.eps) if rows else "",
        "What each part adds or costs, on the same images (p-values are not corrected for the number of pairs):"
        if costs
        else "",
        list(map(cost_in_words, costs)),
        f"If what is flagged got no answer, {percent(evaluation.rejecting_label_accuracy)} of the images would be "
        "answered, and rightly, under every attack.",
    ]


def _check(check: Check) -> Point:
    result = _RESULTS[check.passed]
    found = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in check.found.items())
    return Point(f"{result} {check.name}{f': {found}' if found else ''}", check.meaning, result.lower())
