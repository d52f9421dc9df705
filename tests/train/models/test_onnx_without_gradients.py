"""An ONNX file that torch cannot differentiate: ONNX Runtime answers, a surrogate lends its gradient."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.train.looped_classifier import CLASSES, SHAPE, answers, looped, write_looped

from s2ap_defend.errors import RecipeError
from s2ap_train.models import Classifier, build, create
from s2ap_train.models.cost import flops, parameter_count
from s2ap_train.models.onnx_network import OnnxNetwork


def made(path: Path) -> OnnxNetwork:
    network = create({"name": "onnx", "file": str(path)}, SHAPE, CLASSES)
    assert isinstance(network, OnnxNetwork)
    return network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> OnnxNetwork:
    return made(write_looped(tmp_path_factory.mktemp("looped") / "looped.onnx")).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_it_answers_as_the_graph_does_and_has_the_gradient_of_its_surrogate(network, images):
    np.testing.assert_allclose(network(images).numpy(), answers(images.numpy()), atol=1e-5)
    x, y = images.clone().requires_grad_(), images.clone().requires_grad_()
    answered, lent = network(x), network.surrogate(y)
    assert torch.equal(answered.detach(), network(images))
    answered[:, 2].sum().backward()
    lent[:, 2].sum().backward()
    assert torch.equal(x.grad, y.grad)
    assert bool(x.grad.abs().sum() > 0)


def test_it_says_what_has_no_gradient(network):
    assert network.without_gradients == "operator ai.onnx.Loop (node 'around/loop')"
    assert any("go by transfer" in note and "queries, which find less" in note for note in network.notes)
    assert network.refused_by_tensorrt.startswith("around/loop: Loop is control flow")
    assert any("not for TensorRT: around/loop" in note for note in network.notes)
    assert Classifier.without_gradients.fget(network.surrogate) == ""


def test_what_it_costs_is_counted_from_the_graph(network):
    assert parameter_count(network) == 64 * 12 + 12 * 12 + 12 * CLASSES + 2  # with the loop's turns and its condition
    assert flops(network, SHAPE) == 2 * parameter_count(network)  # no shape in a loop is known before it runs


def test_it_is_rebuilt_copied_and_sent_to_other_processes(network, images):
    x = images.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(network(x)[:, 1].sum(), x)
    again = build(network.architecture(), seed=7)
    again.load_state_dict(network.state_dict())
    for other in (again.eval(), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301
        assert torch.equal(other(images), network(images))
        (found,) = torch.autograd.grad(other(x)[:, 1].sum(), x)
        assert torch.equal(found, wanted)


def test_two_graphs_with_the_same_surrogate_are_told_apart(tmp_path, network):
    other = looped()
    other.graph.initializer[3].int64_data[:] = []
    other.graph.initializer[3].raw_data = np.array(4, np.int64).tobytes()
    onnx.save(other, tmp_path / "other.onnx")
    found = made(tmp_path / "other.onnx").state_dict()
    ours = network.state_dict()
    assert [name for name in ours if not torch.equal(ours[name], found[name])] == ["graph_digest"]


def one_node(path: Path, node: onnx.NodeProto) -> Path:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *SHAPE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft", name="fused"),
            r"holds com.microsoft.FusedMatMul \(fused\), and a defended file holds operators of standard ONNX alone",
        ),
        (helper.make_node("Det", ["x"], ["y"]), r"answers \[2, 1\] to 2 images, expected \[2, 10\]"),
        (helper.make_node("StringNormalizer", ["x"], ["y"]), "ONNX Runtime cannot load the model"),
    ],
)
def test_what_no_engine_runs_for_these_images_is_refused(tmp_path, node, said):
    with pytest.raises(RecipeError, match=said):
        made(one_node(tmp_path / "c.onnx", node))
