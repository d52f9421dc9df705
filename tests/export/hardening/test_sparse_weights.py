"""What the recipe's `export.sparse_weights` does to a file that is hardened."""

from pathlib import Path

import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file
from s2ap_defend.verification.verify import verify_file


@pytest.mark.slow
def test_weights_that_are_mostly_zero_are_stored_without_zeros_unless_the_recipe_says(tmp_path: Path) -> None:
    sparse = {"model.widths": "[16, 16, 32]", "pruning.sparsity": 0.9, "members.robust.count": 1}
    options = [
        *OVERRIDES,
        *(part for key, value in sparse.items() for part in ("--set", f"{key}={value}")),
        "--set",
        'evaluation.attacks="fgsm"',
    ]
    work, files = tmp_path / "work", {}
    for asked in ("auto", "never"):
        path = tmp_path / f"{asked}.onnx"
        said = ("--set", f'export.sparse_weights="{asked}"', "--work-dir", str(work), "--workers", "1")
        assert run(["harden", "digits", "-o", str(path), *said, *options]) == 0
        files[asked] = open_model_file(path)
    auto, never = files["auto"], files["never"]
    assert auto.manifest.sparse_weights
    assert never.manifest.sparse_weights is None
    assert auto.size_bytes < never.size_bytes
    assert auto.manifest.weights_sha256 == never.manifest.weights_sha256
    assert verify_file(auto.path).sound
    calibrated = tmp_path / "calibrated.onnx"
    assert run(["calibrate", str(auto.path), "--data", "digits", "--alpha", "0.2", "-o", str(calibrated)]) == 0
    assert open_model_file(calibrated).manifest.sparse_weights == auto.manifest.sparse_weights
