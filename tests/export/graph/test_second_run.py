"""The weights of the classifier's second run, on images that are purified only where they are suspicious."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import GraphProto, numpy_helper
from tests.export.defended_files import ABSTAINING_DECISION, ABSTAINING_TABLES, PURIFICATION, SHAPE, write_untrained
from torch import nn

from s2ap_defend import ModelFileError
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file, subgraphs, write_model_file
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, cut_stage
from s2ap_export.graph.scopes import rename_scope, run_again
from s2ap_export.tracing.trace import trace_classifier


def tensors(graph: GraphProto) -> dict[str, onnx.TensorProto]:
    """Initialisers of a graph and its branches."""
    inner = [branch for node in graph.node for branch in subgraphs(node)]
    found = {tensor.name: tensor for tensor in graph.initializer}
    return found | {name: tensor for branch in inner for name, tensor in tensors(branch).items()}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("second") / "model.onnx"
    write_untrained(made, ABSTAINING_TABLES, ABSTAINING_DECISION, replace(PURIFICATION, sigma=(0.3,), steps=1))
    return made


def test_the_second_run_has_a_copy_of_the_weights_and_rounds_as_the_first(path: Path) -> None:
    proto = open_model_file(path).proto
    images = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)
    said = [
        OnnxRuntimeEngine(cut_stage(proto, scope).SerializeToString(), device="cpu", threads=1).run(
            {"image": images}, ["log_probabilities"]
        )[0]
        for scope in (CLASSIFIER, CLASSIFIER_AGAIN)
    ]
    np.testing.assert_array_equal(*said)
    assert any(name.startswith(f"{CLASSIFIER_AGAIN}/") for name in tensors(proto.graph))


def test_a_large_classifier_has_its_weights_once() -> None:
    stage = trace_classifier(nn.Sequential(nn.Flatten(), nn.Linear(16, 5)), (1, 4, 4), "any")
    first = rename_scope(stage, CLASSIFIER)
    small, large = run_again(first, CLASSIFIER_AGAIN), run_again(first, CLASSIFIER_AGAIN, most_in_branches=0)
    assert {tensor.name.partition("/")[0] for tensor in small.graph.initializer} == {CLASSIFIER_AGAIN}
    assert not large.graph.initializer
    read = {name for node in large.graph.node for name in node.input}
    assert {tensor.name for tensor in first.graph.initializer} <= read


def test_a_second_run_with_other_weights_is_refused(path: Path, tmp_path: Path) -> None:
    file = open_model_file(path)
    name, tensor = next(
        (name, tensor) for name, tensor in tensors(file.proto.graph).items() if name.startswith(f"{CLASSIFIER_AGAIN}/")
    )
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, name))
    write_model_file(file.proto, file.manifest, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match="the classifier's second run has other weights than the first"):
        open_model_file(tmp_path / "other.onnx")
