import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine

pytestmark = pytest.mark.usefixtures("benchmarks")


def test_executors_are_compared_and_engines_are_left_as_they_were(
    golden: Path, random_images: np.ndarray, tmp_path: Path
) -> None:
    from staged import main

    run = OnnxRuntimeEngine.run
    np.save(tmp_path / "images.npy", random_images[:64])
    model = shutil.copy(golden / "version-4-abstaining.onnx", tmp_path / "model.onnx")
    asked = ["--data", str(tmp_path / "images.npy"), "--batch", "32", "--batch", "64", "--rounds", "1"]
    result = CliRunner().invoke(main, [str(model), *asked])
    assert result.exit_code == 0, result.output
    header, _, *rows = [line.split("|")[1:-1] for line in result.output.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows] == ["32", "64"]
    runs = [float(row[-1]) for row in rows]
    assert header[-1].strip() == "runs"
    assert all(2 <= count <= 8 for count in runs)
    assert OnnxRuntimeEngine.run is run
