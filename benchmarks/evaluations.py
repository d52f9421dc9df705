"""Evaluations of files that differ in their training seed, pooled: what must hold of all of them together.

    python benchmarks/evaluations.py FILE FILE ... [--json FILE]

Each FILE is what `s2ap-defend evaluate MODEL --samples N --first K --json FILE` wrote, of one recipe and one preset,
each model on test images of its own, so that no image counts twice. Rows are means over the files with the smallest and
the largest; differences are paired image by image in each file and pooled over all.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import click
from report import aligned, as_text, paired, points

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import check_writable, replace_file
from s2ap_train.redteam.ablation.must_hold import must_hold_against_baselines
from s2ap_train.redteam.report.baselines import HOLDS
from s2ap_train.redteam.rows import Comparison
from s2ap_train.statistics.paired import pooled_difference

SAME = ("recipe", "data", "preset", "budget", "answer", "eps", "samples")
"""What of the configuration must agree, or the files answer different questions."""
TOP = ("samples", "eps", "seed", "weights_sha256")
"""Parts of the configuration that the files hold one level higher."""
SHARES = ("clean_accuracy", "clean_flagged", "label_accuracy", "robust_accuracy")


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the pooled figures here.")
def main(files: tuple[Path, ...], output: Path | None) -> None:
    """Pool evaluations and print the tables."""
    try:
        if output is not None:
            check_writable(output)
        document = pooled({file.name: evaluation(file) for file in dict.fromkeys(files)})
    except RecipeError as error:
        raise click.ClickException(str(error)) from error
    print_tables(document)
    if output is not None:
        replace_file(output, as_text(document).encode())


def evaluation(file: Path) -> dict[str, Any]:
    """The figures of one file.

    Raises:
        RecipeError: If it cannot be read or is not what `evaluate --json` writes.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
        missing = [key for key in ("ablation", "comparisons", "must_hold") if key not in found]
        found["configuration"] = {key: found[key] for key in TOP if key in found} | found["configuration"]
        missing += [key for key in (*SAME, *TOP) if key not in found["configuration"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{file} cannot be read ({error}); name files of `s2ap-defend evaluate --json`") from error
    if missing:
        raise RecipeError(f"{file} lacks {', '.join(missing)}; name files of `s2ap-defend evaluate --json`")
    return found


def pooled(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Rows over the files, differences over their images, what must hold, as JSON values.

    Raises:
        RecipeError: If two files were not measured alike, are of the same model or share test images.
    """
    for (one, first), (other, second) in combinations(found.items(), 2):
        _check_pair(one, first, other, second)
    runs = list(found.values())
    rows = []
    for name in [row["name"] for row in runs[0]["ablation"]]:
        same = [row for run in runs for row in run["ablation"] if row["name"] == name]
        if len(same) == len(runs):
            rows.append(
                {"name": name}
                | {key: _spread([_share(row, key) for row in same]) for key in (*SHARES, "members_used", "cost")}
            )
    names = [(one["baseline"], one["measure"]) for one in runs[0]["comparisons"]]
    effects = {pair: [_effect(run, *pair) for run in runs] for pair in names}
    compared = [
        Comparison(*pair, pooled_difference([paired(one) for one in parts if one is not None]))
        for pair, parts in effects.items()
        if None not in parts
    ]
    about = runs[0]["configuration"]
    lines = must_hold_against_baselines(about["answer"], compared)
    return {
        "command": "benchmarks/evaluations.py",
        **{key: about[key] for key in SAME},
        "files": {
            name: {
                key: run["configuration"].get(key)
                for key in ("command", "seed", "first", "weights_sha256", "images_sha256", "decision", "machine")
            }
            for name, run in found.items()
        },
        "rows": rows,
        "comparisons": [
            {"baseline": one.baseline, "measure": one.measure, "effect": one.effect.to_json()} for one in compared
        ],
        "must_hold": [{"line": one.line, "result": HOLDS[one.holds], "said": one.said} for one in lines]
        + [
            _every_file(found, line["line"])
            for line in runs[0]["must_hold"]
            if "members_used" in line["found"] or "largest" in line["found"]
        ],
    }


def print_tables(document: Mapping[str, Any]) -> None:
    """All tables in Markdown."""
    files = len(document["files"])
    seeds = f"{files} seed{'s' if files > 1 else ''}, {document['samples']} test images each"
    print(f"{document['recipe']}, {seeds}, {document['preset']}, l_inf {document['eps']:g}\n")
    header = (
        "%, mean (smallest to largest)" if files > 1 else "%",
        "clean",
        "flagged clean",
        "label right",
        "right or flagged",
        "asked",
        "cost",
    )
    rows = [
        (
            row["name"],
            *(_said(row[key], 100, 1) for key in SHARES),
            _said(row["members_used"], 1, 2),
            _said(row["cost"], 1, 2),
        )
        for row in document["rows"]
    ]
    print("\n".join(aligned([header, ("---",) * len(header), *rows])), end="\n\n")
    compared = [(one["baseline"], one["measure"], points(one["effect"])) for one in document["comparisons"]]
    print("\n".join(aligned([("the file against", "figure", "points"), ("---",) * 3, *compared])), end="\n\n")
    print("what must hold" + ", all seeds together" * (files > 1))
    for line in document["must_hold"]:
        print(f"- {line['result']}: {line['line']}: {line['said']}")


def _check_pair(one: str, first: Mapping[str, Any], other: str, second: Mapping[str, Any]) -> None:
    about, with_it = first["configuration"], second["configuration"]
    if different := [key for key in SAME if about[key] != with_it[key]]:
        said = "; ".join(f"{key} is {about[key]!r} and {with_it[key]!r}" for key in different)
        raise RecipeError(f"{one} and {other} were not measured alike: {said}")
    if about["weights_sha256"] == with_it["weights_sha256"]:
        raise RecipeError(f"{one} and {other} are of the same model file; name each seed once")
    if abs(about.get("first", 0) - with_it.get("first", 0)) < about["samples"]:
        raise RecipeError(f"{one} and {other} share test images; evaluate one of them with another --first")


def _share(row: Mapping[str, Any], key: str) -> float:
    value: float = row["worst_case"][key] if key in row["worst_case"] else row[key]
    return value


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "smallest": min(values), "largest": max(values)}


def _effect(run: Mapping[str, Any], baseline: str, measure: str) -> Mapping[str, Any] | None:
    pairs = (one["effect"] for one in run["comparisons"] if (one["baseline"], one["measure"]) == (baseline, measure))
    return next(pairs, None)


def _every_file(found: Mapping[str, Mapping[str, Any]], line: str) -> dict[str, str]:
    """A line that is no comparison: it holds where it does in every file."""
    each = {name: one for name, run in found.items() for one in run["must_hold"] if one["line"] == line}
    worst = next((one["result"] for one in each.values() if one["holds"] is not True), HOLDS[True])
    return {"line": line, "result": worst, "said": "; ".join(one["said"] for one in each.values())}


def _said(spread: Mapping[str, float], times: float, decimals: int) -> str:
    low, mean, high = (f"{times * spread[key]:.{decimals}f}" for key in ("smallest", "mean", "largest"))
    return mean if low == high else f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
