"""`harden` compares every stage with its network and writes nothing when one differs."""

import shutil
from pathlib import Path

import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_defend.commands.main import run
from s2ap_train.storage.checkpoint import load_checkpoint, save_checkpoint


@pytest.mark.parametrize(
    ("part", "layer", "factor", "message"),
    [
        ("score-model", "convolution1", 1e5, "stage purifier: purified is not finite on 8 fitting images; an activa"),
        ("plain", "", float("nan"), "stage classifier: the network itself gives log_probabilities that is not finite"),
        ("member-l1_norm-0", "", float("nan"), "stage member_003: the network itself gives log_probabilities"),
    ],
)
def test_no_file_is_made_where_a_stage_does_not_compare_with_its_network(
    part: str,
    layer: str,
    factor: float,
    message: str,
    small_parts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Networks spoilt after their training: no number, or in half precision beyond what float16 reaches."""
    folder, path = tmp_path / "work", tmp_path / "model.onnx"
    shutil.copytree(small_parts, folder)
    tensors, record = load_checkpoint(folder / part)
    spoilt = {
        name: t * factor for name, t in tensors.items() if t.dim() == 4 and t.is_floating_point() and layer in name
    }
    save_checkpoint(folder / part, tensors=tensors | spoilt, record=record)
    command = ["harden", "digits", "-o", str(path), "--work-dir", str(folder), "--workers", "1", *OVERRIDES]
    exact = ["--set", 'export.precision.purifier="float16"', "--set", 'decision.answer="robust"', "--strict"]
    assert run([*command, "--choose", "unmeasured", *exact]) == 2
    assert message in capsys.readouterr().err
    assert not path.exists()
