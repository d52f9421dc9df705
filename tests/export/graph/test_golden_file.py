"""The exporter of today and the golden files of the same networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.export.defended_files import (
    ABSTAINING_DECISION,
    ABSTAINING_TABLES,
    DECISION,
    KEEPING_TABLES,
    PURIFICATION,
    TABLES,
    write_untrained,
)

from s2ap_defend import DefendedClassifier
from s2ap_defend.manifest import DecisionDescription, TestTables


@pytest.mark.parametrize(
    ("name", "tables", "decision"),
    [
        ("version-4", TABLES, DECISION),
        ("version-4-keeping", KEEPING_TABLES, DECISION),
        ("version-4-abstaining", ABSTAINING_TABLES, ABSTAINING_DECISION),
    ],
)
def test_a_file_that_is_exported_today_gives_the_verdicts_of_the_golden_one(
    name: str, tables: TestTables, decision: DecisionDescription, tmp_path: Path, golden: Path
) -> None:
    write_untrained(tmp_path / "today.onnx", tables, decision, replace(PURIFICATION, sigma=(0.3, 0.2), steps=2))
    classifier = DefendedClassifier.load(tmp_path / "today.onnx", device="cpu")
    with np.load(golden / f"{name}.npz") as expected:
        verdicts = classifier(expected["images"])
        for output in ("label", "adversarial", "members_used", "votes", "log_likelihood_ratio", "abstained"):
            assert np.array_equal(getattr(verdicts, output), expected[output]), output
        assert np.abs(verdicts.purified - expected["purified"]).max() <= 1e-5
