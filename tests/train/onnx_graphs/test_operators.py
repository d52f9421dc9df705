"""Every operator computes what ONNX says of it."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tests.train.onnx_graphs.made_stages import IMAGE, RANDOM, ints, normal, stage

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_train.onnx_graphs import torch_stage

CASES = {
    "Conv": ([normal(5, 2, 3, 3), normal(5)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    "Conv with uneven pads": ([normal(4, 2, 2, 2)], {"pads": [0, 1, 1, 0]}),
    "Conv in groups": ([normal(4, 1, 3, 3)], {"group": 2}),
    "ConvTranspose": ([normal(2, 3, 2, 2), normal(3)], {"strides": [2, 2]}),
    "ConvTranspose with output padding": (
        [normal(2, 3, 3, 3)],
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    "MaxPool": ([], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "AveragePool": ([], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "GlobalAveragePool": ([], {}),
    "InstanceNormalization": ([normal(2), normal(2)], {"epsilon": 1e-3}),
    "BatchNormalization": ([normal(2), normal(2), normal(2), normal(2) ** 2 + 1], {}),
    "ReduceSum": ([ints(2, 3)], {"keepdims": 0}),
    "ReduceMean": ([ints(-1)], {}),
    "ReduceSumSquare": ([ints(1, 2, 3)], {"keepdims": 1}),
    "ReduceMax": ([ints(1)], {"keepdims": 0}),
    "Reshape": ([ints(0, -1)], {}),
    "Flatten": ([], {"axis": 1}),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}),
    "Unsqueeze": ([ints(1, -1)], {}),
    "Slice": ([ints(1), ints(-1), ints(2)], {}),
    "Slice backwards": ([ints(-1), ints(-9), ints(3), ints(-1)], {}),
    "Gather": ([ints(1, 0, -1)], {"axis": 2}),
    "Expand": ([ints(2, 1, 1, 1, 1)], {}),
    "Tile": ([ints(1, 2, 1, 1)], {}),
    "Concat": ([normal(3, 1, 4, 4)], {"axis": 1}),
    "Pad": ([ints(0, 0, 1, 0, 0, 0, 0, 2)], {}),
    "Resize": (
        [np.array([], np.float32), np.array([1, 1, 2, 2], np.float32)],
        {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
    ),
    "LogSoftmax": ([], {"axis": 1}),
    **{f"Pad in mode {mode}": ([ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": mode}) for mode in ("reflect", "edge", "wrap")},
    **{
        f"Resize in mode {mode} with {layout}": (
            [np.array([], np.float32), np.array([], np.float32), ints(3, 2, 7, 3)],
            {"mode": mode, "coordinate_transformation_mode": layout},
        )
        for mode in ("nearest", "linear", "cubic")
        for layout in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
    },
    "AveragePool of an uneven rest": ([], {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    "GlobalMaxPool": ([], {}),
    "LpNormalization": ([], {"axis": 1, "p": 2}),
    "LpNormalization by sums": ([], {"axis": -1, "p": 1}),
    "MeanVarianceNormalization": ([], {"axes": [2, 3]}),
    "Mean": ([normal(4), normal(2, 1, 1)], {}),
    "CumSum": ([np.int64(2)], {}),
    "CumSum from behind, without itself": ([np.int64(1)], {"reverse": 1, "exclusive": 1}),
    "ReduceLogSum": ([ints(1)], {}),
    **{name: ([], {}) for name in ("Acos", "Asin", "Atan", "Tan", "Sinh", "Cosh")},
    "LayerNormalization": ([normal(4), normal(4)], {"epsilon": 1e-3}),
    "GroupNormalization": ([normal(2), normal(2)], {"num_groups": 2}),
    "DepthToSpace": ([], {"blocksize": 1}),
    "SpaceToDepth": ([], {"blocksize": 2}),
    "GatherND": ([np.array([[0, 1], [2, 0]])], {}),
    "GatherElements": ([RANDOM.integers(-4, 4, (3, 2, 4, 4))], {"axis": 3}),
    "ScatterND": ([np.array([[1], [0]]), normal(2, 2, 4, 4)], {}),
    "Einsum": ([normal(4, 5)], {"equation": "bchw,wk->bckh"}),
    "Trilu": ([np.int64(1)], {"upper": 0}),
    "ReduceL1": ([ints(1)], {}),
    "ReduceL2": ([ints(2, 3)], {}),
    "ReduceLogSumExp": ([ints(-1)], {}),
    "PRelu": ([normal(2, 1, 1)], {}),
    "Selu": ([], {"alpha": 1.5, "gamma": 1.2}),
    "Shrink": ([], {"lambd": 0.4, "bias": 0.1}),
    "ThresholdedRelu": ([], {"alpha": 0.4}),
    **{name: ([], {"alpha": 0.3}) for name in ("Celu", "Elu", "HardSigmoid", "LeakyRelu")},
    **{name: ([], {}) for name in ("HardSwish", "Mish", "Softplus", "Softsign")},
    "Softmax": ([], {"axis": -1}),
    "Clip": ([np.float32(0.3), np.float32(0.6)], {}),
    "Max": ([normal(4), np.float32(0.4)], {}),
    "Min": ([normal(4, 4)], {}),
    "Pow": ([np.float32(3.0)], {}),
    "Div": ([normal(2, 1, 1)], {}),
    "Sub": ([normal(2, 1, 1)], {}),
    "MatMul": ([normal(4, 6)], {}),
    "Cast to integers": ([], {"to": TensorProto.UINT8}),
    **{name: ([], {}) for name in ("Round", "Floor", "Ceil", "Sign")},
    **{name: ([], {}) for name in ("Sigmoid", "Relu", "Exp", "Log", "Sqrt", "Tanh", "Erf", "Reciprocal", "Neg", "Abs")},
}


SERVED = {
    **{f"LRN over {size}": ([], {"size": size, "alpha": 0.8, "beta": 0.6, "bias": 1.5}) for size in (1, 3, 5)},
    **{
        f"{operator} with auto_pad {kind}": (constants, {**settings, "auto_pad": kind, "strides": [2, 3]})
        for kind in ("SAME_UPPER", "SAME_LOWER")
        for operator, constants, settings in (
            ("Conv", [normal(3, 2, 2, 3)], {}),
            ("MaxPool", [], {"kernel_shape": [3, 2]}),
            ("AveragePool", [], {"kernel_shape": [3, 2], "count_include_pad": 0}),
        )
    },
}


QUANTISED = {
    "int8 around zero": (np.float32(0.01), np.int8(0)),
    "int8, one-sided, cut off": (np.float32(0.002), np.int8(-128)),
    "uint8 by default": (np.float32(0.02), None),
    "uint8, odd zero point": (np.float32(0.02), np.uint8(101)),
    "one scale in a list": (np.float32([0.02]), np.uint8([7])),
    "a scale for each channel": (np.float32([0.01, 0.003]), np.int8([0, -5])),
}


@pytest.mark.parametrize("case", QUANTISED)
def test_fake_quantisation_rounds_as_the_onnx_reference_does(case):
    scale, zero = QUANTISED[case]
    constants = {"s": scale} | ({} if zero is None else {"z": zero})
    nodes = [
        helper.make_node("QuantizeLinear", ["image", *constants], ["q"]),
        helper.make_node("DequantizeLinear", ["q", *constants], ["y"]),
    ]
    model = stage(nodes, constants)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": IMAGE})
    (found,) = torch_stage(model)(torch.from_numpy(IMAGE))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=0)


def test_weights_of_8_bits_are_turned_into_numbers_once():
    weight, steps = RANDOM.integers(-127, 128, (3, 2, 3, 3), dtype=np.int8), np.float32([0.1, 0.02, 0.5])
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0),
        helper.make_node("Conv", ["image", "w"], ["y"]),
    ]
    model = stage(nodes, {"q": weight, "s": steps})
    (expected,) = ReferenceEvaluator(model).run(None, {"image": IMAGE})
    (found,) = torch_stage(model)(torch.from_numpy(IMAGE))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_every_operator_computes_what_the_onnx_reference_computes(case):
    operands, attributes = CASES[case]
    constants = {f"c{i}": np.asarray(value) for i, value in enumerate(operands)}
    model = stage([helper.make_node(case.split()[0], ["image", *constants], ["y"], **attributes)], constants)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": IMAGE})
    (found,) = torch_stage(model)(torch.from_numpy(IMAGE))
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("side", "last"), [(8, False), (16, True)])
def test_convolutions_of_large_images_compute_the_same_with_channels_last(side, last):
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["hidden"], pads=[1] * 4),
        helper.make_node("Conv", ["hidden", "v"], ["y"]),
    ]
    model = stage(nodes, {"w": normal(4, 2, 3, 3), "v": normal(3, 4, 3, 3)}, shape=("batch", 2, side, side))
    images = normal(2, 2, side, side)
    (found,) = torch_stage(model)(torch.from_numpy(images))
    (expected,) = ReferenceEvaluator(model).run(None, {"image": images})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last) == last


@pytest.mark.parametrize("case", SERVED)
def test_what_the_reference_computes_otherwise_is_what_onnx_runtime_computes(case):
    operands, attributes = SERVED[case]
    constants = {f"c{i}": np.asarray(value) for i, value in enumerate(operands)}
    model = stage([helper.make_node(case.split()[0], ["image", *constants], ["y"], **attributes)], constants)
    session = OnnxRuntimeEngine(model.SerializeToString(), device="cpu", threads=1)
    (expected,) = session.run({"image": IMAGE}, ["y"])
    (found,) = torch_stage(model)(torch.from_numpy(IMAGE))
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_blocks_of_channels_become_pixels_in_either_order_of_onnx():
    image = np.arange(32, dtype=np.float32).reshape(1, 8, 2, 2)
    for mode in ("DCR", "CRD"):
        model = stage([helper.make_node("DepthToSpace", ["image"], ["y"], blocksize=2, mode=mode)], {})
        (expected,) = ReferenceEvaluator(model).run(None, {"image": image})
        np.testing.assert_array_equal(torch_stage(model)(torch.from_numpy(image))[0].numpy(), expected)


def test_one_size_of_a_shape_is_picked():
    nodes = [
        helper.make_node("Shape", ["image"], ["shape"]),
        helper.make_node("Gather", ["shape", "second"], ["channels"]),
        helper.make_node("Unsqueeze", ["channels", "first"], ["sizes"]),
        helper.make_node("Concat", ["any", "sizes"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["image", "wanted"], ["y"]),
    ]
    model = stage(nodes, {"second": np.int64(1), "first": ints(0), "any": ints(-1)})
    assert torch_stage(model)(torch.from_numpy(IMAGE))[0].shape == (IMAGE.size // 2, 2)


def test_shapes_that_are_computed_from_the_batch_follow_it():
    nodes = [
        helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["image", "shape"], ["y"]),
    ]
    run = torch_stage(stage(nodes, {"rest": ints(32)}))
    assert [run(torch.zeros(n, 2, 4, 4))[0].shape for n in (1, 5)] == [(1, 32), (5, 32)]


def test_gemm_with_bias_and_transposed_weights_is_a_linear_layer():
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1),
    ]
    weight, bias = normal(3, 32), normal(3)
    (found,) = torch_stage(stage(nodes, {"w": weight, "b": bias}))(torch.from_numpy(IMAGE))
    np.testing.assert_allclose(found.numpy(), IMAGE.reshape(3, -1) @ weight.T + bias, rtol=1e-5, atol=1e-5)
