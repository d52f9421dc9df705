import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier

NODE = Path(__file__).parent / "node"


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="onnxruntime-node is not installed: make test-node")
@pytest.mark.parametrize("name", ["version-4", "version-4-keeping", "version-4-abstaining"])
def test_the_file_gives_the_same_verdicts_in_node(name: str, golden: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
    answered = in_node(golden / f"{name}.onnx", images, tmp_path)
    verdicts = DefendedClassifier.load(golden / f"{name}.onnx", device="cpu")(images)
    for output, values in answered.items():
        assert values == getattr(verdicts, output).tolist(), output


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(not (NODE / "node_modules").exists(), reason="onnxruntime-node is not installed: make test-node")
def test_pixels_that_are_none_are_flagged_in_node_and_change_nothing_for_their_neighbours(
    tiny_model_path: Path, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).random((8, 1, 8, 8), dtype=np.float32)
    bad = {1: np.nan, 3: np.inf, 4: -np.inf, 6: 1e30, 7: -5.0}
    for row, pixel in bad.items():
        images[row, 0, 2, 3] = pixel
    good = [row for row in range(8) if row not in bad]
    together = in_node(tiny_model_path, images, tmp_path)
    alone = in_node(tiny_model_path, images[good], tmp_path)
    assert all(together["adversarial"][row] for row in bad)
    assert [row for row in range(8) if together["abstained"][row]] == [1, 3, 4]
    for output, values in alone.items():
        assert values == [together[output][row] for row in good], output


def in_node(model: Path, images: np.ndarray, folder: Path) -> dict[str, list[float]]:
    """What a file answers in Node.js, by output."""
    (folder / "images.bin").write_bytes(images.astype("<f4").tobytes())
    shape = [str(size) for size in images.shape[1:]]
    command = ["node", str(NODE / "run_model.mjs"), str(model), str(folder / "images.bin"), *shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=NODE)
    assert done.returncode == 0, done.stderr
    answered: dict[str, list[float]] = json.loads(done.stdout)
    return answered
