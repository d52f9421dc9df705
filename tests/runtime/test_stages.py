import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import ModelFileError
from s2ap_defend.stages import StageSize, cut_stage, join_stages, member_scope, stage_sizes

IMAGES = np.random.default_rng(0).random((3, 1, 2, 2), dtype=np.float32)
WEIGHTS = {scope: np.random.default_rng(i).normal(size=(4, 3)) for i, scope in enumerate(("classifier", "m0", "m1"))}


def tensor(name, value):
    return numpy_helper.from_array(np.asarray(value), name)


def network(scope, reads, weights):
    """Nodes and initialisers of a linear network; the axis of the flattening is a node, as exporters write it."""
    nodes = [
        helper.make_node("Flatten", [reads], [f"{scope}/flat"], name=f"{scope}/node_0"),
        helper.make_node("MatMul", [f"{scope}/flat", f"{scope}/weight"], [f"{scope}/logits"], name=f"{scope}/node_1"),
        helper.make_node(
            "LogSoftmax", [f"{scope}/logits"], [f"{scope}/log_probabilities"], name=f"{scope}/node_2", axis=1
        ),
    ]
    return nodes, [tensor(f"{scope}/weight", weights.astype(np.float32))]


def defended():
    """A purifier, a classifier and a member in the main graph, and a second member inside a branch of an If.

    The branch's weights are inside it; one scale of the purifier is a Constant node without a scope.
    """
    nodes = [
        helper.make_node("Constant", [], ["scale"], value=tensor("", np.float32(0.5))),
        helper.make_node("Mul", ["image", "scale"], ["purifier/half"], name="purifier/node_0"),
        helper.make_node("Sub", ["purifier/half", "purifier/shift"], ["purifier/moved"], name="purifier/node_1"),
        helper.make_node("Clip", ["purifier/moved", "zero"], ["purifier/purified"], name="purifier/node_2"),
        helper.make_node(
            "ReduceSum", ["image", "axes"], ["purifier/reconstruction_error"], name="purifier/node_3", keepdims=0
        ),
    ]
    initializers = [
        tensor("purifier/shift", np.float32(0.1)),
        tensor("zero", np.float32(0.0)),
        tensor("axes", np.array([1, 2, 3])),
    ]
    for scope, key in (("classifier", "classifier"), ("member_000", "m0")):
        more_nodes, more_initializers = network(scope, "purifier/purified", WEIGHTS[key])
        nodes += more_nodes
        initializers += more_initializers
    inner_nodes, inner_initializers = network("member_001", "test/wave_001/image", WEIGHTS["m1"])
    gather = helper.make_node("Identity", ["purifier/purified"], ["test/wave_001/image"], name="test/gather")
    output = [helper.make_empty_tensor_value_info("member_001/log_probabilities")]
    then = helper.make_graph([gather, *inner_nodes], "then", [], output, inner_initializers)
    skip = helper.make_node("Identity", ["member_000/log_probabilities"], ["test/skipped"], name="test/skip")
    otherwise = helper.make_graph([skip], "else", [], [helper.make_empty_tensor_value_info("test/skipped")])
    nodes += [
        helper.make_node("If", ["yes"], ["last"], name="test/wave_001", then_branch=then, else_branch=otherwise),
        helper.make_node("Exp", ["classifier/log_probabilities"], ["probabilities"]),
        helper.make_node("Identity", ["purifier/purified"], ["purified"]),
        helper.make_node("Identity", ["purifier/reconstruction_error"], ["reconstruction_error"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 2, 2])
    outputs = [
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3]),
        helper.make_tensor_value_info("purified", TensorProto.FLOAT, ["batch", 1, 2, 2]),
        helper.make_tensor_value_info("reconstruction_error", TensorProto.FLOAT, ["batch"]),
        helper.make_tensor_value_info("last", TensorProto.FLOAT, ["batch", 3]),
    ]
    graph = helper.make_graph(nodes, "g", [image], outputs, [*initializers, tensor("yes", np.array(True))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def purified_by_hand(images):
    return np.maximum(images * np.float32(0.5) - np.float32(0.1), 0)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def run(stage, images, *names):
    return OnnxRuntimeEngine(stage.SerializeToString(), device="cpu").run({"image": images}, list(names))


@pytest.mark.parametrize("scope", ["purifier", "classifier", "member_000", "member_001"])
def test_every_stage_is_a_valid_model_with_the_input_image_and_a_dynamic_batch(scope):
    stage = cut_stage(defended(), scope)
    onnx.checker.check_model(stage, full_check=True)
    assert [value.name for value in stage.graph.input] == ["image"]
    dims = stage.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 1, 2, 2]


def test_the_purifier_runs_alone_and_computes_what_it_computed_inside():
    purified, error = run(cut_stage(defended(), "purifier"), IMAGES, "purified", "reconstruction_error")
    np.testing.assert_allclose(purified, purified_by_hand(IMAGES), rtol=1e-6)
    np.testing.assert_allclose(error, IMAGES.sum(axis=(1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(("scope", "key"), [("classifier", "classifier"), ("member_000", "m0"), ("member_001", "m1")])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_network_runs_alone_also_when_it_came_from_a_branch(scope, key, batch):
    (found,) = run(cut_stage(defended(), scope), IMAGES[:batch], "log_probabilities")
    expected = log_softmax(IMAGES[:batch].reshape(batch, -1) @ WEIGHTS[key])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_stages_put_together_give_the_whole_model():
    model = defended()
    whole = ReferenceEvaluator(model).run(["last", "probabilities"], {"image": IMAGES})
    (purified,) = run(cut_stage(model, "purifier"), IMAGES, "purified")
    (member,) = run(cut_stage(model, member_scope(1)), purified, "log_probabilities")
    (classifier,) = run(cut_stage(model, "classifier"), purified, "log_probabilities")
    np.testing.assert_allclose(member, whole[0], rtol=1e-5)
    np.testing.assert_allclose(np.exp(classifier), whole[1], rtol=1e-5)


def test_cutting_leaves_the_model_as_it_was():
    model = defended()
    before = model.SerializeToString(deterministic=True)
    cut_stage(model, "member_001").graph.node[0].input[0] = "changed"
    assert model.SerializeToString(deterministic=True) == before


def test_a_stage_holds_only_the_weights_that_it_reads():
    assert [tensor.name for tensor in cut_stage(defended(), "member_000").graph.initializer] == ["member_000/weight"]


def test_a_missing_stage_is_named_with_those_that_are_there():
    with pytest.raises(ModelFileError, match="no stage 'member_007'; it has classifier, member_000, member_001, pur"):
        cut_stage(defended(), "member_007")


def test_a_stage_that_reads_two_values_from_outside_is_refused():
    model = defended()
    next(node for node in model.graph.node if node.name == "member_000/node_2").input[0] = "classifier/logits"
    with pytest.raises(
        ModelFileError, match=r"stage member_000 reads 2 values from outside \(purifier/purified, class"
    ):
        cut_stage(model, "member_000")


def test_a_stage_without_its_output_is_refused():
    model = defended()
    next(node for node in model.graph.node if node.name == "member_000/node_2").output[0] = "member_000/other"
    with pytest.raises(ModelFileError, match="stage member_000 has no value member_000/log_probabilities"):
        cut_stage(model, "member_000")


def test_a_stage_in_two_graphs_is_refused():
    model = defended()
    next(node for node in model.graph.node if node.name == "classifier/node_0").name = "member_001/node_9"
    with pytest.raises(ModelFileError, match="stage member_001 is spread over 2 graphs, expected one"):
        cut_stage(model, "member_001")


def test_sizes_count_nodes_and_numbers_of_every_stage_branches_included():
    sizes = stage_sizes(defended())
    assert list(sizes) == ["purifier", "classifier", "member_000", "test", "member_001"]
    assert sizes["purifier"] == StageSize(nodes=4, parameters=1, size_bytes=4)
    assert sizes["member_001"] == StageSize(nodes=3, parameters=12, size_bytes=48)
    assert sizes["test"].nodes == 3


def test_member_scopes_count_from_zero_with_three_digits():
    assert [member_scope(i) for i in (0, 12)] == ["member_000", "member_012"]


def test_stages_of_an_exported_file_run_alone(tiny_model_path):
    model = onnx.load(tiny_model_path)
    for scope in ("purifier", "classifier", "member_000"):
        stage = cut_stage(model, scope)
        onnx.checker.check_model(stage, full_check=True)
        shape = [dim.dim_value for dim in stage.graph.input[0].type.tensor_type.shape.dim[1:]]
        outputs = run(stage, np.full((2, *shape), 0.5, np.float32), *[o.name for o in stage.graph.output])
        assert all(len(output) == 2 for output in outputs)


def test_the_second_run_of_the_classifier_is_no_stage(golden):
    model = onnx.load(golden / "version-4-abstaining.onnx")
    sizes = stage_sizes(model)
    assert "classifier_again" not in sizes
    assert sizes["classifier"].parameters > 0
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    (purified,) = run(cut_stage(model, "purifier"), images, "purified")
    (answered,) = run(cut_stage(model, "classifier"), purified, "log_probabilities")
    assert answered.shape == (2, 10)


def test_stages_that_are_joined_answer_as_each_alone_and_share_what_is_theirs_together():
    model = defended()
    stages = {scope: cut_stage(model, scope) for scope in ("classifier", "member_000", "member_001")}
    shared = tensor("shared", np.float32(0))
    for stage in stages.values():
        stage.graph.initializer.append(shared)
    joined = join_stages(stages)
    onnx.checker.check_model(joined, full_check=True)
    names = [f"{scope}/log_probabilities" for scope in stages]
    assert [output.name for output in joined.graph.output] == names
    assert [value.name for value in joined.graph.input] == ["image"]
    assert [one.name for one in joined.graph.initializer].count("shared") == 1
    for stage, said in zip(stages.values(), run(joined, IMAGES, *names), strict=True):
        np.testing.assert_array_equal(said, run(stage, IMAGES, "log_probabilities")[0])


def test_members_that_see_raw_images_are_cut_out_of_the_main_graph_and_of_branches(golden):
    model = onnx.load(golden / "version-4.onnx")
    for i in range(6):
        stage = cut_stage(model, member_scope(i))
        onnx.checker.check_model(stage, full_check=True)
        assert [value.name for value in stage.graph.input] == ["image"]


def test_the_second_run_of_the_classifier_keeps_its_weights_where_an_engine_does_not_rearrange_them(golden):
    model = onnx.load(golden / "version-4-abstaining.onnx")
    again = cut_stage(model, "classifier_again")
    onnx.checker.check_model(again, full_check=True)
    image, *weights = (value.name for value in again.graph.input)
    assert image == "image"
    assert weights == [tensor.name for tensor in again.graph.initializer]
    assert all(name.startswith("classifier/") for name in weights)
    images = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    first, second = (run(stage, images, "log_probabilities")[0] for stage in (cut_stage(model, "classifier"), again))
    np.testing.assert_allclose(first, second, atol=1e-5)
