"""Tables of the decision benchmark, from what it measured.

python benchmarks/decision_tables.py FILE
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from decision_seeds import FIGURES, MEASURES, requirements
from report import aligned, points

from s2ap_train.redteam.report.baselines import HOLDS


def print_tables(document: Mapping[str, Any]) -> None:
    """All tables in Markdown."""
    for run in document["runs"]:
        work = run["effort"]
        print(
            f"\n{document['recipe']['name']}, seed {run['seed']}, {run['samples']} test images, l_inf {run['eps']:g}; "
            f"at least {work['descents']} descents of {work['steps']} steps on each system and goal\n"
        )
        print("\n".join(_systems(run["systems"])), "", sep="\n")
        print("\n".join(_differences(run["systems"])), "", sep="\n")
        print("\n".join(_parts(run["parts"])))
        print("\n".join(_must_hold(run["systems"])))
    if document["over_seeds"]:
        print(f"\nmeans over {len(document['runs'])} seeds, differences with Student's 95 % interval\n")
        print("\n".join(_seeds(document["over_seeds"])))
        if all("pooled" in one for one in document["over_seeds"]):
            print("\nall seeds, each on test images of its own")
            print("\n".join(_must_hold([one | {"against": one["pooled"]} for one in document["over_seeds"]])))


def _rows(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return aligned([header, ("---",) * len(header), *rows])


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _systems(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (
            one["who"],
            one["flag"] or "-",
            one["purify"] or "-",
            *(_percent(one[name]) for name in FIGURES),
            f"{one['members_used']:.1f}",
            f"{one['cost']:.2f}",
        )
        for one in systems
    ]
    header = ("who answers", "what raises the flag", "purified", *FIGURES.values(), "members asked", "cost")
    return _rows(header, rows)


def _differences(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (one["key"], *(points(one["against"].get(measure)) for measure in MEASURES))
        for one in systems
        if one["against"] and one["flag"] != "r least confident"
    ]
    return _rows(("points", "clean - r", "label right - r", "right or flagged - r least confident"), rows)


def _parts(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    return _rows(("part", "figure", "points"), [(one["part"], one["measure"], points(one)) for one in parts])


def _must_hold(systems: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in systems:
        if found := requirements(one):
            lines += [f"\nwhat must hold of '{one['key']}'"]
            lines += [f"- {HOLDS[line.holds]}: {line.line}: {line.said}" for line in found]
    return lines


def _seeds(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for one in found:
        cells = []
        for measure in MEASURES:
            effect = one["differences"].get(measure)
            if effect is None:
                cells.append("-")
                continue
            low, high = (100 * end for end in effect["interval"])
            cells.append(f"{100 * effect['mean']:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append((one["key"], *(_percent(one[name]) for name in FIGURES), *cells))
    return _rows(("system", *FIGURES.values(), *(f"{measure}, difference" for measure in MEASURES)), rows)


if __name__ == "__main__":
    print_tables(json.loads(Path(sys.argv[1]).read_bytes()))
