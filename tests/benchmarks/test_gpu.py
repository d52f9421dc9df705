"""The script for a machine with a GPU, run on the CPU: the same code, tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = {"environment", "parity-onnxruntime", "parity-torch", "bench-onnxruntime", "bench-torch", "training"}


def run(folder: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    chosen = {"DEVICE": "cpu", "SIZES": "tiny", "PYTHON": sys.executable, "OUT": str(out), **environment}
    return subprocess.run(
        ["sh", str(ROOT / "benchmarks" / "gpu.sh"), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | chosen,
    )


@pytest.mark.slow
def test_every_part_is_measured_once_and_brought_out(tmp_path: Path) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    out.mkdir()
    done = run(folder, out)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in out.iterdir()}
    assert set(found) == PARTS
    assert not any("skipped" in one for one in found.values())
    for name, said in found["parity-onnxruntime"]["fashion.onnx"].items():
        assert (said["label"], said["adversarial"], said["members_used"]) == (0, 0, 0), name
        assert said["probabilities"] <= 1e-5
    assert found["parity-torch"]["version-4.onnx"]["float32"]["adversarial"] == 0
    rows = found["bench-onnxruntime"]["resnet18, six members asked"]
    assert [row["batch"] for row in rows["at_once"]] == [1, 2]
    assert all(row["p99_ms"] >= row["p50_ms"] > 0 for of in rows.values() for row in of)
    assert found["bench-torch"]["resnet18, four members asked"]["float32, batched"][0]["of_ceiling"] > 0
    assert found["training"]["32"]["images_per_s"] > 0
    (folder / "environment.json").unlink()
    again = run(folder, out)
    assert again.stdout.count("done before") == len(PARTS) - 1


def test_a_part_whose_library_is_missing_says_so_and_is_tried_again_and_one_that_is_done_is_not(tmp_path: Path) -> None:
    folder, out = tmp_path / "results", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    for part in PARTS - {"parity-torch"}:
        (folder / f"{part}.json").write_text("{}")
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ModuleNotFoundError('no torch here', name='torch')\n")
    for _ in range(2):
        done = run(folder, out, PYTHONPATH=str(tmp_path / "hidden"), PYTHON=sys.executable)
        assert done.returncode == 1, done.stdout + done.stderr
        assert "environment: done before" in done.stdout
        assert "parity-torch: skipped, torch is not installed for" in done.stderr
        assert done.stdout.endswith(f"5 of 6 parts are measured, in {folder}\n")
    assert "torch is not installed for" in json.loads((out / "parity-torch.json").read_text())["skipped"]


def test_a_part_that_fails_says_where_the_reason_is_and_the_others_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for part in PARTS - {"parity-torch", "training"}:
        (folder / f"{part}.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ValueError('a driver that is too old')\n")
    done = run(folder, tmp_path, PYTHONPATH=str(tmp_path / "broken"))
    assert done.returncode == 1
    for part in ("parity-torch", "training"):
        said = f"{part}: failed, ValueError: a driver that is too old; where is in {folder}/{part}.error.txt"
        assert said in done.stderr.splitlines()
        assert "a driver that is too old" in (folder / f"{part}.error.txt").read_text()
