"""The tables of the documents are those that their benchmarks print from the files of benchmarks/results."""

import importlib
import json
import re
import sys
from typing import Any

import pytest
from tests.docs.documents import ROOT

WHOLE = [
    ("docs/decision.md", "decision-digits", "decision_tables.print_tables"),
    ("docs/decision.md", "decision-fashion", "decision_tables.print_tables"),
    ("docs/decision.md", "evaluation-fashion", "evaluations.print_tables"),
    ("docs/decision.md", "evaluation-fashion-standard", "evaluations.print_tables"),
    ("docs/decision.md", "evaluation-cifar10-small", "evaluations.print_tables"),
    ("docs/decision.md", "false-alarms-cifar10-small", "false_alarms.print_table"),
    ("docs/decision.md", "false-alarms-fashion", "false_alarms.print_table"),
    ("docs/decision.md", "jurors-fashion", "jurors.print_table"),
    ("docs/decision.md", "jurors-fashion-kinds", "jurors.print_table"),
    ("docs/detection.md", "corruptions-fashion", "corruptions.print_table"),
    ("docs/performance.md", "bench-always-digits", "bench_tables.print_table"),
    ("docs/performance.md", "bench-always-fashion", "bench_tables.print_table"),
    ("docs/performance.md", "bench-cifar10-small", "bench_tables.print_table"),
    ("docs/performance.md", "bench-digits", "bench_tables.print_table"),
    ("docs/performance.md", "bench-fashion-shipped", "bench_tables.print_table"),
    ("docs/performance.md", "peers-digits", "peers_tables.print_tables"),
    ("docs/purifier-figures.md", "purification-digits", "purification_tables.print_tables"),
    ("docs/purifier-figures.md", "purification-fashion", "purification_tables.print_tables"),
    ("docs/purifier-figures.md", "purification-fashion-wide", "purification_tables.print_tables"),
]
"""Documents that hold every table of a file: the document, the file, what prints it."""
PARTS = [
    ("docs/detection-figures.md", "detection-digits"),
    ("docs/detection-figures-cifar10.md", "detection-cifar10-small"),
]
"""Documents that hold some tables of a file, each under its title, and of some only a few rows."""
README_ROWS = {
    "the classifier inside, alone": "bare classifier",
    "adversarially trained": "adversarially trained",
    "robust classifier alone": "robust classifier alone",
    "the same, least confident inputs flagged": "least confident flagged",
    "jury only, never flagged": "jury only",
    "the file": "full, keep",
}
"""How README calls the rows of an evaluation."""


def figures(name: str) -> Any:
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_bytes())


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


@pytest.fixture
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


@pytest.mark.usefixtures("_benchmarks")
@pytest.mark.parametrize(("document", "name", "printer"), WHOLE)
def test_every_row_that_a_file_prints_is_in_its_document(
    document: str, name: str, printer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, function = printer.split(".")
    getattr(importlib.import_module(module), function)(figures(name))
    written = set(rows((ROOT / document).read_text()))
    printed = rows(capsys.readouterr().out)
    assert printed
    assert [row for row in printed if row not in written] == []


@pytest.mark.usefixtures("_benchmarks")
@pytest.mark.parametrize(("document", "name"), PARTS)
def test_every_row_under_the_title_of_a_table_is_printed_from_its_file(document: str, name: str) -> None:
    printed = importlib.import_module("detection_tables").tables(figures(name))
    sections = re.split(r"^#+ ", (ROOT / document).read_text(), flags=re.MULTILINE)
    titled = {title: rows(text) for title, _, text in (section.partition("\n") for section in sections)}
    found = [title for title in titled if title in printed]
    assert len(found) > 5
    assert [(title, row) for title in found for row in titled[title] if row not in printed[title]] == []


@pytest.mark.parametrize("name", ["fashion", "cifar10-small"])
def test_the_table_of_the_readme_is_that_of_the_evaluations(name: str) -> None:
    measured = {row["name"]: row for row in figures(f"evaluation-{name}")["rows"]}
    text = (ROOT / "README.md").read_text()
    shown = rows(text[text.index(f"| {name}, l_inf eps") :].partition("\n\n")[0])[2:]
    assert len(shown) == len(README_ROWS)
    for row in shown:
        title, *cells = (cell.strip(" *") for cell in row.strip("|").split("|"))
        found = measured[README_ROWS[title.partition(":")[0]]]
        keys = ("clean_accuracy", "clean_flagged", "label_accuracy", "robust_accuracy")
        shares = {key: found[key]["mean"] for key in keys}
        expected = [f"{100 * share:.1f}%" if share or key != "clean_flagged" else "" for key, share in shares.items()]
        assert cells == [*expected, f"{found['cost']['mean']:.2f}".rstrip("0").rstrip(".")], title
