"""The benchmarks of pruned structures and of memory, at sizes that take seconds."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_masks_leave_what_they_say() -> None:
    from structures import two_of_four, unstructured

    weight = torch.randn(8, 12, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = two_of_four(weight)
    assert (kept.reshape(8, 3, 4, 3, 3).sum(dim=2) == 2).all()
    assert weight[kept].abs().sum() > weight[~kept].abs().sum()
    assert two_of_four(weight[:, :3]).all()
    assert unstructured(0.25)(weight).float().mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
def test_structures_are_compared_with_dense_weights_on_every_engine(tmp_path: Path) -> None:
    from structures import ENGINES, main

    found = tmp_path / "structures.json"
    asked = ["--batch", "1", "--rounds", "2", "--width", "0.125", "--json", str(found)]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    said = json.loads(found.read_text())
    assert len(said["files"]) == 5 * 2 * 2
    assert all(row["ratio"] == 1.0 for row in said["files"] if row["members"] == "dense")
    rows = said["rows"]
    assert len(rows) == 5 * len(ENGINES)
    assert all(row["ratio"] == 1.0 for row in rows if row["structure"] == "dense")
    assert all("Conv" in row["kernels"] or "conv" in row["kernels"] for row in rows)


@pytest.mark.slow
def test_memory_is_measured_for_both_ways_to_store_weights() -> None:
    from external_memory import main

    result = CliRunner().invoke(main, ["--members", "2", "--width", "0.0625"])
    assert result.exit_code == 0, result.output
    assert result.output.count("one file") == result.output.count("a file of their own") == 2
