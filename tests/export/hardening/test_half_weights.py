"""Weights rounded to float16 in stages that compute in float32: what is rounded, what is refused, whole files."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from tests.export.defended_files import SEES
from tests.export.stage_runs import DIGITS, run
from tests.runtime.test_sparse_weights import graph_of
from torch import nn

from s2ap_defend import DefendedClassifier, ModelFileError, RecipeError, Verdicts
from s2ap_defend.half_weights import lengthen, shorten
from s2ap_defend.model_file import all_graphs, open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionRecord, weights_precision
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.half_weights import to_half_weights
from s2ap_export.hardening.parity import check_stage
from s2ap_export.hardening.precision import precision_of, to_half
from s2ap_export.hardening.stage_precision import in_precision
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.recipe.tables import ExportSettings


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return fold_batch_norm(SmallCNN(1, 10, (8, 8, 16), seed=0).eval())


@pytest.fixture(scope="module")
def stage(network: nn.Module) -> ModelProto:
    return trace_classifier(network, DIGITS, "classifier")


def weights(stage: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in stage.graph.initializer}


def test_weights_are_the_nearest_halves_and_nothing_else_changes(stage: ModelProto) -> None:
    rounded = to_half_weights(stage)
    assert [node.SerializeToString() for node in rounded.graph.node] == [
        node.SerializeToString() for node in stage.graph.node
    ]
    before, after = weights(stage), weights(rounded)
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert changed == {node.input[1] for node in stage.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}}
    for name in changed:
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], before[name].astype(np.float16).astype(np.float32))
    assert weights_precision(rounded.graph.initializer) == "float32"
    assert precision_of(rounded) == "float16_weights"


def test_the_stage_says_what_its_network_says_within_a_rounding_of_its_weights(
    stage: ModelProto, network: nn.Module, digits: np.ndarray
) -> None:
    rounded = in_precision(stage, "float16_weights", digits, tensorrt=True)
    assert check_stage("classifier", rounded, lambda x: (network(x).log_softmax(dim=1),), digits)
    (exact,), (found,) = run(stage, digits), run(rounded, digits)
    assert 0.0 < np.abs(found - exact).max() < 2.0**-11 * 6 * np.abs(exact).max()


def test_what_cannot_be_rounded_is_refused(stage: ModelProto) -> None:
    for converted in (to_half_weights(stage), to_half(stage)):
        with pytest.raises(RecipeError, match="already; convert the float32 stage, once"):
            to_half_weights(converted)
    large = ModelProto()
    large.CopyFrom(stage)
    tensor = next(one for one in large.graph.initializer if len(one.dims) == 4)
    tensor.CopyFrom(numpy_helper.from_array(np.full(tuple(tensor.dims), 7e4, dtype=np.float32), tensor.name))
    with pytest.raises(RecipeError, match=r"holds 7e\+04, float16 ends at 65504; keep this stage in float32"):
        to_half_weights(large)


def test_one_word_is_for_classifier_and_members() -> None:
    wanted = ExportSettings(precision="float16_weights").precision  # type: ignore[arg-type]
    assert (wanted.purifier, wanted.classifier, wanted.members) == ("float32", "float16_weights", "float16_weights")


def test_a_file_says_so_and_one_that_does_not_do_so_is_refused(
    tiny_stages: tuple[ModelProto, ModelProto, list[ModelProto]],
    tiny_model_path: Path,
    digits: np.ndarray,
    tmp_path: Path,
) -> None:
    said = open_model_file(tiny_model_path).manifest
    purifier, classifier, members = tiny_stages
    manifest = said.model_copy(
        update={
            "members": tuple(one.model_copy(update={"precision": "float16_weights"}) for one in said.members),
            "precision": PrecisionRecord(classifier="float16_weights", comparison=None),
        }
    )
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    for path, last in ((good, to_half_weights(members[-1])), (bad, members[-1])):
        stages = [*map(to_half_weights, members[:-1]), last]
        rounded = to_half_weights(classifier)
        model = compose(purifier, rounded, stages, said.to_test(), sees=SEES, purify=said.decision.purify)
        write_model_file(model, manifest, path)
    dense = tmp_path / "dense.onnx"
    write_model_file(open_model_file(good).proto, said, dense)
    assert weight_bytes(good) < weight_bytes(dense)
    assert open_model_file(good).proto.graph == open_model_file(dense).proto.graph
    whole, staged, single = (
        DefendedClassifier.load(path, threads=1, executor=name)(digits)
        for path, name in ((good, "whole"), (good, "staged"), (dense, "whole"))
    )
    plain = ort.InferenceSession(good, providers=["CPUExecutionProvider"]).run(list(Verdicts.FIELDS), {"image": digits})
    for i, name in enumerate(Verdicts.FIELDS):
        np.testing.assert_array_equal(getattr(whole, name), getattr(single, name), err_msg=name)
        np.testing.assert_array_equal(getattr(whole, name), plain[i], err_msg=name)
    np.testing.assert_array_equal(whole.label, staged.label)
    np.testing.assert_array_equal(whole.log_likelihood_ratio, staged.log_likelihood_ratio)
    with pytest.raises(ModelFileError, match="weights of member_005 are float32, the manifest says float16_weights"):
        open_model_file(bad)


def weight_bytes(path: Path) -> int:
    """Of all tensors of a file, as they are stored."""
    return sum(len(one.raw_data) for graph in all_graphs(onnx.load(path).graph) for one in graph.initializer)


WEIGHTS = (np.arange(600, dtype=np.float32) - 300) / 256


@pytest.mark.parametrize(
    ("values", "halves"),
    [
        (WEIGHTS, True),
        (WEIGHTS.reshape(2, 300), True),
        (-WEIGHTS * 0, True),
        (WEIGHTS / 3, False),
        (WEIGHTS[:511], False),
    ],
    ids=["exact", "a matrix", "minus zero", "rounded", "small"],
)
def test_tensors_are_stored_in_halves_where_those_are_exact_and_come_back(values: np.ndarray, halves: bool) -> None:
    graph, before = graph_of(values), graph_of(values)
    shorten([graph])
    assert (graph.ByteSize() < 0.7 * before.ByteSize()) == halves
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (found,) = ort.InferenceSession(model.SerializeToString()).run(None, {})
    assert (found.dtype, found.tobytes()) == (np.float32, values.tobytes())
    lengthen([graph])
    assert graph == before


def test_half_weights_of_another_form_are_refused() -> None:
    for forge in (
        lambda graph: graph.node.insert(0, graph.node[-1]),
        lambda graph: setattr(graph.node[0].attribute[0], "i", TensorProto.DOUBLE),
        lambda graph: graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS, "w:half")),
    ):
        graph = graph_of(WEIGHTS)
        shorten([graph])
        forge(graph)
        with pytest.raises(ValueError, match="nodes that cast w:half are not those of the file format"):
            lengthen([graph])
