import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from s2ap_defend.bench.ceilings import EXTRA, NUMBERS, SIDE, Ceilings, ceiling_variants, ceilings
from s2ap_defend.bench.work import Work, count_work


def stage(nodes, weights, image, output, *, dims=True):
    """A stage of these nodes; the image is [batch, *image]."""
    tensors = [numpy_helper.from_array(np.zeros(shape, dtype=np.float32), name) for name, shape in weights.items()]
    x = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *image])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *output])
    graph = helper.make_graph(nodes, "stage", [x], [y], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_a_convolution_counts_two_for_every_weight_and_place():
    nodes = [helper.make_node("Conv", ["image", "w"], ["y"], pads=[1, 1, 1, 1], group=2)]
    found = count_work(stage(nodes, {"w": (6, 2, 3, 3)}, (4, 5, 7), (6, 5, 7)))
    assert found == Work(2 * (6 * 5 * 7) * (2 * 3 * 3), 4 * 6 * 2 * 9, 4 * (4 * 35 + 6 * 35))


def test_a_transposed_convolution_counts_two_for_every_weight_and_place_that_it_reads():
    nodes = [helper.make_node("ConvTranspose", ["image", "w"], ["y"], strides=[2, 2])]
    found = count_work(stage(nodes, {"w": (4, 3, 2, 2)}, (4, 5, 5), (3, 10, 10)))
    assert found is not None
    assert found.flops == 2 * (4 * 5 * 5) * (3 * 2 * 2)


@pytest.mark.parametrize(
    "product",
    [
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"]),
        helper.make_node("Gemm", ["flat", "w"], ["y"], transB=0, alpha=0.5),
    ],
)
def test_a_product_counts_two_for_every_weight_and_the_rest_nothing(product):
    nodes = [helper.make_node("Relu", ["image"], ["r"]), helper.make_node("Flatten", ["r"], ["flat"]), product]
    found = count_work(stage(nodes, {"w": (12, 5)}, (3, 2, 2), (5,)))
    assert found == Work(2 * 12 * 5, 4 * 60, 4 * (12 + 5))


def test_branches_are_counted_as_if_all_were_taken():
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["flat", "w"], ["z"])],
        "taken",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 5])],
    )
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
    ]
    found = count_work(stage(nodes, {"w": (12, 5)}, (3, 2, 2), (5,)))
    assert found is not None
    assert found.flops == 2 * 2 * 12 * 5


def test_a_product_of_unknown_size_is_not_guessed():
    nodes = [
        helper.make_node("NonZero", ["image"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["rows"]),
        helper.make_node("MatMul", ["rows", "w"], ["y"]),
    ]
    assert count_work(stage(nodes, {"w": (4, 5)}, (3, 2, 2), (5,))) is None


def test_the_floor_is_operations_or_bytes_whichever_takes_longer():
    reached = Ceilings(flops_per_s=1000.0, bytes_per_s=100.0)
    assert reached.floor_s(Work(flops=500, weight_bytes=10, image_bytes=5), 4) == 2.0
    assert reached.floor_s(Work(flops=1, weight_bytes=100, image_bytes=25), 4) == 2.0
    assert reached.floor_s(Work(flops=500, weight_bytes=10, image_bytes=5), 0) == 0.0


def test_ceilings_are_the_best_times_of_the_longer_graphs_without_those_of_the_shorter():
    seconds = {
        "product x 1": np.array([[2.0, 3.0]]),
        f"product x {1 + EXTRA}": np.array([[9.0, 2.0 + EXTRA]]),
        "pass x 1": np.array([[1.0, 1.0]]),
        f"pass x {1 + EXTRA}": np.array([[1.0 + 2 * EXTRA, 50.0]]),
    }
    assert ceilings(seconds) == Ceilings(2.0 * SIDE**3, 2 * 4 * NUMBERS / 2)


def test_what_is_timed_for_the_ceilings_computes_what_it_should():
    found = {name: calls[0]() for name, calls in ceiling_variants("cpu", 1).items()}
    assert [float(value) for (value,) in (found["pass x 1"], found[f"pass x {1 + EXTRA}"])] == [-0.5, -0.5]
    weight = np.random.default_rng(0).normal(0, SIDE**-0.5, (SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(found["product x 1"][0], (0.5 * weight.sum(axis=0)).max(), rtol=1e-4)
