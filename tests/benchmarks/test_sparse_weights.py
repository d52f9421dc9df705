"""The benchmark of weights without their zeros, at one size."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.slow
def test_sparse_files_are_smaller_and_answer_the_same_bits(tmp_path: Path) -> None:
    from sparse_weights import main

    found = tmp_path / "sparse.json"
    asked = ["--recipe", "fashion", "--zeros", "0.9", "--rounds", "1", "--json", str(found)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    rows = {row["stored"]: row for row in json.loads(found.read_text())["rows"]}
    assert all(row["same_bits"] for row in rows.values())
    assert rows["sparse"]["kb"] < 0.6 * rows["dense"]["kb"]
    assert rows["float16, sparse"]["kb"] < 0.6 * rows["float16"]["kb"]
    assert all(row["load_ms"] > 0 for row in rows.values())
