"""`harden` on a network of the user's that torch's exporter writes, all the way."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from tests.export.small_recipe import OVERRIDES

from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_train.hardening.parts import PLAIN
from s2ap_train.models import build
from s2ap_train.storage.checkpoint import load_checkpoint

NETS = """
from torch import nn

def padded(in_channels, classes):
    return nn.Sequential(
        nn.Upsample(scale_factor=2), nn.ReflectionPad2d(1), nn.Conv2d(in_channels, 8, 3, 2), nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True), nn.Conv2d(8, 12, 3), nn.LocalResponseNorm(3), nn.Hardswish(inplace=True),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, classes),
    )
"""


@pytest.mark.slow
def test_a_network_that_torch_writes_becomes_a_file_that_is_attacked_and_answers_as_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "padded_nets.py").write_text(NETS)
    changes = [part for part in OVERRIDES if not part.startswith(("model.widths", "members.robust.models"))]
    changes = [part for part in changes if part != "--set"]
    changes += ['model="padded_nets:padded"', 'members.robust.models=["padded_nets:padded"]', 'classifier="plain"']
    changes += [f"members.{family}.count=0" for family in ("random_channel", "l1_norm")]
    command = ["harden", "digits", "-o", "model.onnx", "--work-dir", "work", "--workers", "1"]
    assert run([*command, *(word for change in changes for word in ("--set", change))]) == 0
    file = open_model_file(tmp_path / "model.onnx")
    stage = cut_stage(file.proto, CLASSIFIER)
    assert {node.op_type for node in stage.graph.node} >= {"Resize", "Pad"}  # torch's, not ours
    assert file.manifest.measured
    tensors, record = load_checkpoint(tmp_path / "work" / PLAIN)
    network = build(record["architecture"])
    network.load_state_dict({name.removeprefix("weight."): tensor for name, tensor in tensors.items()})
    x = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    found = ort.InferenceSession(stage.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": x})
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(x)).log_softmax(1).numpy()
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
