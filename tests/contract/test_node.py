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
def test_the_file_gives_the_same_verdicts_in_node(tiny_model_path: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((256, 1, 8, 8), dtype=np.float32)
    (tmp_path / "images.bin").write_bytes(images.astype("<f4").tobytes())
    command = ["node", str(NODE / "run_model.mjs"), str(tiny_model_path), str(tmp_path / "images.bin"), "1", "8", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=NODE)
    assert done.returncode == 0, done.stderr
    answered = json.loads(done.stdout)
    verdicts = DefendedClassifier.load(tiny_model_path, device="cpu")(images)
    assert answered["label"] == verdicts.label.tolist()
    assert answered["adversarial"] == verdicts.adversarial.tolist()
    assert answered["members_used"] == verdicts.members_used.tolist()
