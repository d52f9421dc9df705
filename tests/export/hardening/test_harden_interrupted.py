"""What Ctrl-C leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.export.small_recipe import OVERRIDES


@pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])
def test_ctrl_c_ends_with_one_line_and_the_next_run_goes_on(tmp_path: Path, workers: str) -> None:
    path = tmp_path / "model.onnx"
    slow = [*OVERRIDES, "--set", "adversarial.epochs=500", "--workers", workers]
    command = [sys.executable, "-m", "s2ap_defend", "harden", "digits", "-o", str(path), *slow]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  (a background job ignores it)
    )
    kept = tmp_path / "model.onnx.training" / "score-model" / "checkpoint.json"
    deadline = time.monotonic() + 600
    while not kept.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.count("\n") == 1, errors
    assert "run the same command again to go on" in errors
    assert kept.exists()
    assert not path.exists()
