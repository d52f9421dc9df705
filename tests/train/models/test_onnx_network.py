"""A classifier that is an ONNX file alone: what ONNX Runtime answers to it, gradients, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models import build, create
from s2ap_train.models.cost import flops
from s2ap_train.models.logits import Reading

SHAPE = (3, 10, 8)


def network(end: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Flatten(), nn.Linear(6 * 20, 4), *([] if end is None else [end])
    ).eval()  # fmt: skip


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.permute(0, 3, 1, 2))


def exported(path: Path, model: nn.Module, shape: tuple[int, ...] = SHAPE, *, batch: int | None = None) -> Path:
    dynamic = None if batch else {"x": {0: "n"}}
    example = torch.rand(batch or 2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older exporter, which most files out there come from
        torch.onnx.export(model, (example,), path, input_names=["x"], dynamic_axes=dynamic, dynamo=False)
    return path


def served(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": images})[0]


def made(path: Path, **more: object) -> nn.Module:
    return create({"name": "onnx", "file": str(path), **more}, SHAPE, 4)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_it_answers_what_onnx_runtime_does_and_has_its_gradients(tmp_path, images):
    path = exported(tmp_path / "c.onnx", network())
    model = made(path)
    np.testing.assert_allclose(model(images).detach().numpy(), served(path, images.numpy()), atol=1e-5)
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    model(x)[:, 2].sum().backward()
    network()(y)[:, 2].sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    assert flops(model, SHAPE) == flops(network(), SHAPE)


def test_it_is_rebuilt_from_its_description_and_its_weights(tmp_path, images):
    model = made(exported(tmp_path / "c.onnx", network()), mean=[0.5], std=[0.2])
    again = build(model.architecture())
    for one in again.parameters():
        one.data.zero_()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(images), model(images))
    np.testing.assert_allclose(model(images).numpy(), network()((images - 0.5) / 0.2).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_number_of_images_is_undone(tmp_path, images, batch):
    path = exported(tmp_path / "c.onnx", network(), batch=batch)
    np.testing.assert_allclose(made(path)(images).numpy(), network()(images).detach().numpy(), atol=1e-5)


def test_channels_last_are_seen_by_the_input(tmp_path, images):
    path = exported(tmp_path / "c.onnx", ChannelsLast().eval(), (10, 8, 3))
    model = made(path)
    assert model.layout == "NHWC"
    assert "takes [N, H, W, C]" in model.notes[0]
    np.testing.assert_allclose(model(images).numpy(), network()(images).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.Sigmoid()], ids=["Softmax", "Sigmoid"])
def test_a_last_softmax_or_sigmoid_is_left_out_where_its_logits_are_the_input(tmp_path, images, end):
    path = exported(tmp_path / "c.onnx", network(end))
    model = made(path)
    assert f"the graph ends in {type(end).__name__}" in model.notes[0]
    torch.testing.assert_close(model(images), network()(images), atol=1e-5, rtol=1e-5)
    assert torch.equal(build(model.architecture())(images), model(images))
    assert (served(path, images.numpy()).argmax(axis=1) == model(images).argmax(dim=1).numpy()).all()


class Clipped(nn.Module):
    """Probabilities of a sigmoid, which is not the last operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid().clamp(1e-6, 1 - 1e-6)


def test_a_sigmoid_behind_which_values_are_clipped_is_read_as_odds(tmp_path, images):
    model = made(exported(tmp_path / "c.onnx", network(Clipped())))
    assert model.reading == Reading(odds=True)
    torch.testing.assert_close(model(images), network()(images), atol=1e-4, rtol=1e-4)


class Doubled(nn.Module):
    """Probabilities that a softmax does not end with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (2 * x.softmax(dim=1))


def test_other_probabilities_become_logits(tmp_path, images):
    model = made(exported(tmp_path / "c.onnx", network(Doubled())))
    assert "probabilities" in model.notes[0]
    expected = network()(images).log_softmax(dim=1)
    torch.testing.assert_close(model(images).log_softmax(dim=1), expected, atol=1e-4, rtol=1e-4)
    asked = made(exported(tmp_path / "d.onnx", network(nn.Softmax(dim=1))), logits={"log": True})
    torch.testing.assert_close(asked(images), expected, atol=1e-4, rtol=1e-4)


def small(path: Path, *nodes: onnx.NodeProto, opset: int = 20, dtype: int = TensorProto.FLOAT, outputs=("y",)) -> Path:
    weight = numpy_helper.from_array(np.ones((240, 4), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), *(nodes or [helper.make_node("MatMul", ["f", "w"], ["y"])])],
        "small",
        [helper.make_tensor_value_info("x", dtype, ["n", 3, 10, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None]) for name in outputs],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.write_bytes(b"no model"), "is no ONNX model that can be read"),
        (lambda p: small(p, dtype=TensorProto.DOUBLE), "takes double images, expected float32"),
        (lambda p: small(p, helper.make_node("Det", ["f"], ["y"])), "cannot be run on 2 images of shape"),
        (lambda p: small(p, helper.make_node("MatMul", ["f", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"]),
                         outputs=("y", "z")), "has the outputs y, z, expected one"),
        (lambda p: small(p, helper.make_node("Relu", ["f"], ["y"])),
         r"answers \[2, 240\] to 2 images, expected \[2, 4\]"),
        (lambda p: exported(p, network(), batch=1), None),
    ],
)  # fmt: skip
def test_what_is_no_such_classifier_is_refused(tmp_path, change, said):
    change(tmp_path / "c.onnx")
    if said is None:
        made(tmp_path / "c.onnx")
        return
    with pytest.raises(RecipeError, match=said):
        made(tmp_path / "c.onnx")


@pytest.mark.parametrize("outputs", [("y",), ("f", "y")], ids=["alone", "next to another"])
def test_columns_with_ones_behind_them_are_a_column_a_class(tmp_path, images, outputs):
    path = small(
        tmp_path / "c.onnx",
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"], axis=1),
        helper.make_node("Unsqueeze", ["p", "places"], ["y"]),
    )
    proto = onnx.load(path)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "places"))
    kinds = {"y": ["n", 4, 1, 1], "f": ["n", 240]}
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, 1, kinds[name]) for name in outputs)
    onnx.save(proto, path)
    model = made(path)
    assert model.reading.log  # the probabilities do not come last, so they are read
    assert model(images).shape == (5, 4)
    np.testing.assert_allclose(model(images).exp().numpy(), 0.25, atol=1e-6)  # the weights of all classes are equal


def test_images_of_another_size_are_refused_with_both_sizes(tmp_path):
    path = exported(tmp_path / "c.onnx", network())
    with pytest.raises(RecipeError, match=r"takes images of shape \['N', 3, 10, 8\], the data has \[3, 12, 8\]"):
        create({"name": "onnx", "file": str(path)}, (3, 12, 8), 4)


def test_an_old_opset_is_upgraded(tmp_path, images):
    model = made(small(tmp_path / "c.onnx", opset=11))
    expected = images.flatten(1).sum(dim=1, keepdim=True).expand(-1, 4)
    torch.testing.assert_close(model(images), expected)
