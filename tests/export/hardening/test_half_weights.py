"""Weights rounded to float16 in stages that compute in float32: what is rounded, what is refused, whole files."""

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from tests.export.defended_files import SEES
from tests.export.stage_runs import DIGITS, run
from torch import nn

from s2ap_defend import DefendedClassifier, ModelFileError, RecipeError
from s2ap_defend.model_file import open_model_file, write_model_file
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
    whole, staged = (DefendedClassifier.load(good, threads=1, executor=name)(digits) for name in ("whole", "staged"))
    np.testing.assert_array_equal(whole.label, staged.label)
    np.testing.assert_array_equal(whole.log_likelihood_ratio, staged.log_likelihood_ratio)
    with pytest.raises(ModelFileError, match="weights of member_005 are float32, the manifest says float16_weights"):
        open_model_file(bad)
