"""Stages as torch functions: gradients, what is computed once, and what is refused by name."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from tests.train.onnx_graphs.made_stages import IMAGE, ints, normal, stage

from s2ap_defend.errors import ModelFileError
from s2ap_train.onnx_graphs import torch_stage


def test_the_gradient_through_a_traced_descent_step_is_the_second_derivative():
    # The graph holds z = x - 0.1 * d/dx sum(x^3), the derivative written out as operators; so dz/dx = 1 - 0.6 x.
    nodes = [
        helper.make_node("Mul", ["image", "image"], ["square"]),
        helper.make_node("Mul", ["square", "three"], ["gradient"]),
        helper.make_node("Mul", ["gradient", "eta"], ["step"]),
        helper.make_node("Sub", ["image", "step"], ["y"]),
    ]
    run = torch_stage(stage(nodes, {"three": np.float32(3), "eta": np.float32(0.1)}))
    x = torch.from_numpy(IMAGE).requires_grad_()
    run(x)[0].sum().backward()
    torch.testing.assert_close(x.grad, 1 - 0.6 * x.detach())


def test_float64_passes_a_numerical_gradient_check():
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("InstanceNormalization", ["h", "g", "b"], ["n"]),
        helper.make_node("Sigmoid", ["n"], ["s"]),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c", "axes"], ["y"]),
    ]
    model = stage(nodes, {"w": normal(2, 2, 3, 3), "g": normal(2), "b": normal(2), "axes": ints(1, 2)})
    run = torch_stage(model, dtype=torch.float64)
    x = torch.from_numpy(IMAGE[:1]).double().requires_grad_()
    assert run(x)[0].dtype == torch.float64
    assert torch.autograd.gradcheck(lambda images: run(images)[0], (x,))


def rounded(*names):
    """A stage that scales pixels to 0 .. 10, applies operators that are constant in pieces, and scales back."""
    casts = {"Cast to integers": {"to": TensorProto.UINT8}, "Cast back": {"to": TensorProto.FLOAT}}
    nodes, value = [helper.make_node("Mul", ["image", "ten"], ["scaled"])], "scaled"
    for i, name in enumerate(names):
        nodes.append(helper.make_node(name.split()[0], [value], [f"v{i}"], **casts.get(name, {})))
        value = f"v{i}"
    return stage([*nodes, helper.make_node("Div", [value, "ten"], ["y"])], {"ten": np.float32(10)})


@pytest.mark.parametrize(
    "names", [("Round",), ("Floor",), ("Ceil",), ("Sign",), ("Cast to integers", "Cast back"), ("Round", "Floor")]
)
def test_what_is_constant_in_pieces_has_gradient_zero_and_straight_through_that_of_no_rounding(names):
    model = rounded(*names)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": IMAGE})
    for straight, slope in ((False, 0.0), (True, 1.0)):
        x = torch.from_numpy(IMAGE).requires_grad_()
        (y,) = torch_stage(model, straight_through=straight)(x)
        np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-6)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(gradient, torch.full_like(x, slope), rtol=1e-6, atol=0)


def test_an_output_that_no_gradient_leads_to_has_gradient_zero_and_others_keep_theirs():
    nodes = [
        helper.make_node("Greater", ["image", "half"], ["above"]),
        helper.make_node("Cast", ["above"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["image", "half"], ["z"]),
    ]
    x = torch.from_numpy(IMAGE).requires_grad_()
    y, z = torch_stage(stage(nodes, {"half": np.float32(0.5)}, ("y", "z")))(x)
    assert [float(torch.autograd.grad(value.sum(), x)[0].mean()) for value in (y, z)] == [0.0, 0.5]
    assert not torch_stage(stage(nodes, {"half": np.float32(0.5)}, ("y", "z")))(x.detach())[0].requires_grad


def test_straight_through_keeps_the_value_of_clip_and_passes_its_gradient():
    model = stage(
        [helper.make_node("Clip", ["image", "low", "high"], ["y"])], {"low": np.float32(0), "high": np.float32(1)}
    )
    x = torch.full((1, 2, 4, 4), 1.5, requires_grad=True)
    gradients = []
    for straight in (False, True):
        (y,) = torch_stage(model, straight_through=straight)(x)
        assert torch.all(y == 1.0)
        gradients.append(float(torch.autograd.grad(y.sum(), x)[0].mean()))
    assert gradients == [0.0, 1.0]


def test_what_does_not_depend_on_the_image_is_computed_once_and_what_nobody_reads_never():
    nodes = [
        helper.make_node("Mul", ["a", "a"], ["four"]),
        helper.make_node("Add", ["image", "four"], ["y"]),
        helper.make_node("Exp", ["image"], ["unused"]),
    ]
    run = torch_stage(stage(nodes, {"a": np.float32(2)}))
    assert len(run._steps) == 1
    torch.testing.assert_close(run(torch.ones(1, 2, 4, 4))[0], torch.full((1, 2, 4, 4), 5.0))


def test_the_same_function_can_be_called_again_with_another_batch():
    run = torch_stage(stage([helper.make_node("Relu", ["image"], ["h"]), helper.make_node("Neg", ["h"], ["y"])], {}))
    first = run(torch.from_numpy(IMAGE))[0]
    assert run(torch.from_numpy(IMAGE[:1]))[0].shape[0] == 1
    torch.testing.assert_close(run(torch.from_numpy(IMAGE))[0], first, rtol=0, atol=0)


def test_an_unknown_operator_is_named():
    model = stage([helper.make_node("Multinomial", ["image"], ["y"], name="classifier/odd")], {})
    with pytest.raises(
        ModelFileError, match=r"node 'classifier/odd' .* operator ai\.onnx\.Multinomial is not supported"
    ):
        torch_stage(model)


def test_an_unsupported_setting_is_named():
    node = helper.make_node("Resize", ["image", "", "s"], ["y"], coordinate_transformation_mode="tf_crop_and_resize")
    model = stage([node], {"s": np.ones(4, np.float32)})
    with pytest.raises(ModelFileError, match="Resize in mode nearest, tf_crop_and_resize"):
        torch_stage(model)


def test_a_graph_with_two_inputs_is_no_stage():
    model = stage([helper.make_node("Relu", ["image"], ["y"])], {})
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelFileError, match=r"a stage has one input, this graph has \['image', 'other'\]"):
        torch_stage(model)
