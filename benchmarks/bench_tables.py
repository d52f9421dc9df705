"""The table of docs/performance.md of what `s2ap-defend bench --json FILE` measured.

python benchmarks/bench_tables.py FILE
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from report import aligned

from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER

PARTS = {CLASSIFIER: "classifier", PURIFIER: "purifier", CLASSIFIER_AGAIN: "classifier on purified images"}
OVERHEADS = {"outside": "outside the engines", "beyond": "beyond the stages"}


def print_table(document: Mapping[str, Any]) -> None:
    """Print multiples of the bare classifier by batch, and what executors add as a share and in microseconds."""
    batches = document["batches"]
    first, *others = (str(one["batch"]) for one in batches)
    lines: list[tuple[str, ...]] = [("x bare", f"batch {first}", *others), ("---", *["---:"] * len(batches))]
    lines += [(name, *map(said, batches)) for name, said in _rows(document)]
    print(*aligned(lines), sep="\n")


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    """The rows: their name, and what they say of a batch size."""
    executors = list(document["batches"][0]["executors"])
    for name in executors:
        yield name, lambda one, name=name: f"{one['executors'][name]['times_bare']:.3g}"
    for part in dict.fromkeys(name for one in document["batches"] for name in _parts(one)):
        yield f"of it: {part}", lambda one, part=part: f"{_parts(one).get(part, 0.0):.2g}"
    for key, what in OVERHEADS.items():
        for name in executors:
            yield (
                f"{name}: {what}",
                lambda one, key=key, name=name: (
                    f"{one[f'{key}_share'][name]:.1%}, {1e3 * one[f'{key}_ms'][name]:,.0f} us"
                ),
            )
    yield "floor: operations, of the bare classifier's", lambda one: f"{one['floor_times_bare']:.3g}"


def _parts(one: Mapping[str, Any]) -> dict[str, float]:
    """Multiples of the bare classifier of the stages, members together: of all images, and of those that are unsure."""
    found: dict[str, float] = {}
    for stage in one["stages"]:
        asked = "members of all images" if stage["rows"] == one["batch"] else "later members"
        name = PARTS.get(stage["scope"], asked)
        found[name] = found.get(name, 0.0) + stage["times_bare"]
    return found


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def main(file: Path) -> None:
    """Print the table."""
    print_table(json.loads(file.read_bytes()))


if __name__ == "__main__":
    main()
