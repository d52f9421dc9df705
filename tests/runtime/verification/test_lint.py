"""What TensorRT refuses in a stage is found by the graph alone, with the node's name."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from s2ap_defend.model_file import open_model_file
from s2ap_defend.verification.lint import SUPPORTED, lint_stage
from s2ap_defend.verification.verify import file_stages


def stage(*nodes: NodeProto, opset: int = 20, **tensors: object) -> ModelProto:
    """A stage `image` [N, 4] -> `log_probabilities` of these nodes, the last of which gives it."""
    graph = helper.make_graph(
        list(nodes),
        "member_000",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(op: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"member_000/{op.lower()}", **attributes)


def branch(name: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node("Identity", ["image"], [name])], name, [], [value])


SOFTMAX = node("LogSoftmax", "x", "log_probabilities")
FLOAT64 = helper.np_dtype_to_tensor_dtype(np.dtype(np.float64))


@pytest.mark.parametrize(
    ("found", "model"),
    [
        (
            "member_000/if: If is control flow, which cannot be captured in a CUDA graph",
            stage(
                node("If", "yes", "x", then_branch=branch("a"), else_branch=branch("b")), SOFTMAX, yes=np.array(True)
            ),
        ),
        ("member_000/nonzero: the size of what NonZero gives depends on values", stage(node("NonZero", "image", "x"))),
        ("member_000/unique: the size of what Unique gives", stage(node("Unique", "image", "x"))),
        ("member_000/det: TensorRT has no Det", stage(node("Det", "image", "x"))),
        ("member_000/bernoulli: Bernoulli takes random numbers", stage(node("Bernoulli", "image", "x"))),
        ("member_000/maxpool: TensorRT has no indices", stage(node("MaxPool", "image", "x i", kernel_shape=[2]))),
        ("member_000/cast: Cast to float64, which", stage(node("Cast", "image", "x", to=FLOAT64))),
        (
            "x is uint16",
            stage(node("Cast", "image", "x", to=TensorProto.UINT16), node("Cast", "x", "y", to=TensorProto.FLOAT)),
        ),
        (
            "member_000/reducesum: ReduceSum takes a size or axis from the values of an image",
            stage(node("Cast", "image", "n", to=TensorProto.INT64), node("ReduceSum", "image n", "x")),
        ),
        ("w is double", stage(node("Mul", "image w", "x"), w=np.float64(2))),
        (
            "member_000/quantizelinear: QuantizeLinear with a zero point that is not int8 0",
            stage(node("QuantizeLinear", "image s z", "x"), SOFTMAX, s=np.float32(1), z=np.int8(-128)),
        ),
        (
            "member_000/quantizelinear: QuantizeLinear with a zero point that is not int8 0",
            stage(node("QuantizeLinear", "image s", "x"), SOFTMAX, s=np.float32(1)),
        ),
        ("operator set 24, expected 9 to 20", stage(node("Relu", "image", "x"), opset=24)),
        (
            "member_000/expand: Expand takes a size or axis from the values of an image",
            stage(node("Cast", "image", "n", to=TensorProto.INT64), node("Expand", "one n", "x"), one=np.float32(1)),
        ),
        (
            "member_000/range: Range takes a size or axis from the values of an image",
            stage(node("ReduceMax", "image", "n", keepdims=0), node("Range", "a n b", "x"), a=0.0, b=1.0),
        ),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
def test_what_tensorrt_does_not_take_is_found_with_its_node(found: str, model: ModelProto) -> None:
    said = lint_stage(model)
    assert any(one.startswith(found) for one in said), said


def test_sizes_that_follow_from_shapes_are_known_before_anything_runs() -> None:
    shape = node("Shape", "image", "n")
    assert lint_stage(stage(shape, node("Expand", "one n", "x"), SOFTMAX, one=np.float32(1))) == []


def test_a_constant_node_of_float64_is_found() -> None:
    value = numpy_helper.from_array(np.float64(1.0))
    said = lint_stage(stage(node("Constant", "", "c", value=value), node("Cast", "c", "x", to=TensorProto.FLOAT)))
    assert "member_000/constant is double" in said


def test_every_operator_of_the_list_is_one_of_onnx_and_no_control_flow() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}
    assert known >= SUPPORTED
    assert not SUPPORTED & {"If", "Loop", "Scan", "NonZero", "Compress", "Unique", "Det", "QLinearConv"}


def test_stages_of_golden_files_are_for_tensorrt_and_the_whole_file_is_not(golden: Path) -> None:
    for path in sorted(golden.glob("*.onnx")):
        file = open_model_file(path)
        for scope, one in file_stages(file).items():
            assert lint_stage(one) == [], (path.name, scope)
        said = lint_stage(file.proto)
        assert any("If is control flow" in one for one in said)
        assert any("is double" in one for one in said)
