from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, numpy_helper
from tests.export.stage_runs import DIGITS, assert_same_bits_in_every_batch, bank, images, operators, run
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_export.graph.rewrites import Rewrites
from s2ap_export.graph.scopes import rename_scope
from s2ap_export.tracing.trace import trace_classifier, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.purifier import Purification, UNet, purify

SHORT = Purification(steps=2, bank_size=2, sigma=0.2, rho=0.2)


def randomised(net: nn.Module, scale: float = 0.2) -> nn.Module:
    """Random weights everywhere, also where training starts at zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in net.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net() -> UNet:
    return randomised(UNet(1, 16, (1, 2)))


@pytest.fixture(scope="module")
def purifier(net: UNet) -> ModelProto:
    return trace_purifier(net, bank(SHORT), SHORT, DIGITS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "j_free"},
        {"norm": "l2", "radius": 0.5},
        {"rho": 0.0},
        {"reuse_ascent": True, "steps": 3},
        {"bank_size": 6},
    ],
    ids=str,
)
def test_the_traced_purifier_equals_torch(net: UNet, changes: dict[str, object]) -> None:
    config = replace(SHORT, **changes)  # type: ignore[arg-type]
    x = images(5)
    purified, error = run(trace_purifier(net, bank(config), config, DIGITS), x)
    expected, expected_error = purify(net, torch.from_numpy(x), bank(config), config)
    assert float((expected - torch.from_numpy(x)).abs().max()) > 0.01  # it does something
    np.testing.assert_allclose(purified, expected.numpy(), atol=2e-5, rtol=0)  # float32, two steps of twelve layers
    np.testing.assert_allclose(error, expected_error.numpy(), rtol=1e-4)


def test_the_purifier_is_a_plain_stage(purifier: ModelProto) -> None:
    onnx.checker.check_model(purifier, full_check=True)
    assert [value.name for value in purifier.graph.input] == ["image"]
    assert [value.name for value in purifier.graph.output] == ["purified", "reconstruction_error"]
    assert [(o.domain, o.version) for o in purifier.opset_import] == [("", 20)]
    assert not purifier.functions
    assert purifier.ir_version <= 10
    dims = [[d.dim_param or d.dim_value for d in o.type.tensor_type.shape.dim] for o in purifier.graph.output]
    assert dims == [["batch", 1, 8, 8], ["batch"]]


def test_all_names_carry_the_scope(purifier: ModelProto) -> None:
    graph = purifier.graph
    inner = {name for node in graph.node for name in (*node.input, *node.output)} - {""}
    outside = inner - {name for name in inner if name.startswith("purifier/")}
    assert outside == {"image", "purified", "reconstruction_error"}
    assert all(node.name.startswith("purifier/") for node in graph.node)
    assert all(tensor.name.startswith("purifier/") for tensor in graph.initializer)
    assert len({node.name for node in graph.node}) == len(graph.node)


def test_weights_are_stored_once_and_the_embedding_of_sigma_is_a_constant(net: UNet, purifier: ModelProto) -> None:
    names = {tensor.name for tensor in purifier.graph.initializer}
    assert {"purifier/head.weight", "purifier/bank"} <= names
    assert not any("embedding" in name or "modulation" in name for name in names)
    assert operators(purifier).isdisjoint({"Sin", "Cos", "Log", "Gemm", "MatMul", "Shape", "Expand"})
    convolutions = sum(p.numel() for p in net.parameters() if p.dim() == 4)
    stored = sum(numpy_helper.to_array(t).size for t in purifier.graph.initializer if len(t.dims) == 4)
    assert stored < 2.2 * convolutions  # each forwards and mirrored, whatever the number of steps


def test_more_steps_add_nodes_but_no_weights(net: UNet, purifier: ModelProto) -> None:
    longer = trace_purifier(net, bank(SHORT), replace(SHORT, steps=4), DIGITS)
    assert len(longer.graph.initializer) == len(purifier.graph.initializer)
    assert len(longer.graph.node) < 2.1 * len(purifier.graph.node)


def test_transposed_convolutions_of_stride_one_are_plain_ones_unless_they_have_few_outputs(
    purifier: ModelProto,
) -> None:
    sizes = {tensor.name: list(tensor.dims) for tensor in purifier.graph.initializer}
    transposed = [node for node in purifier.graph.node if node.op_type == "ConvTranspose"]
    strides = [next(list(a.ints) for a in node.attribute if a.name == "strides") for node in transposed]
    assert strides.count([2, 2]) == 4 * 2  # per field one in the network, one in the gradient of the downsampling
    to_images = [node for node, stride in zip(transposed, strides, strict=True) if stride == [1, 1]]
    assert len(to_images) == 4 * 2  # per field the last layer, and the gradient of the first
    assert all(sizes[node.input[1]] == [16, 1, 3, 3] for node in to_images)


def test_every_rewrite_off_gives_the_same_values_and_larger_graphs() -> None:
    x, net = images(5), randomised(UNet(1, 16, (1,)))
    purifier = trace_purifier(net, bank(SHORT), SHORT, DIGITS)
    expected = run(purifier, x)
    for name in ("mirrored_convolutions", "few_channels", "shared_nodes", "merged_reshapes", "merged_constants"):
        plain = trace_purifier(net, bank(SHORT), SHORT, DIGITS, rewrites=replace(Rewrites(), **{name: False}))
        assert plain.SerializeToString() != purifier.SerializeToString(), name
        if "convolutions" not in name and "channels" not in name:
            assert len(plain.graph.node) > len(purifier.graph.node), name
        for values, wanted in zip(run(plain, x), expected, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=2e-5, err_msg=name)


def test_normalisation_without_a_gradient_is_one_node(net: UNet) -> None:
    config = replace(SHORT, mode="j_free", rho=0.0, steps=1)
    fused, plain = (
        trace_purifier(net, bank(config), config, DIGITS, rewrites=Rewrites(fused_norms=fused))
        for fused in (True, False)
    )
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("InstanceNormalization") == kinds.count("BatchNormalization") == 6
    assert operators(plain).isdisjoint({"InstanceNormalization"})
    together = assert_same_bits_in_every_batch(fused, images(64), threads=2)
    np.testing.assert_allclose(together[0], run(plain, images(64))[0], rtol=0, atol=2e-6)


class Strided(nn.Module):
    """A score model with what the U-Net does not have: stride 2 with kernel 3, groups, dilation, other activations."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.mirrored = nn.ConvTranspose2d(4, 2, 3, stride=1, padding=1)

    def forward(self, y: Tensor, sigma: float) -> Tensor:
        hidden = nn.functional.silu(self.norm(self.grouped(torch.tanh(self.down(y)))))
        return self.mirrored(nn.functional.gelu(self.up(hidden)))[:, :, : y.shape[2], : y.shape[3]] * sigma


@pytest.mark.parametrize("size", [8, 7, 6, 5])
def test_the_gradient_of_stride_two_gets_the_output_padding_of_its_input_size(size: int) -> None:
    net = randomised(Strided(), scale=0.5)
    shape = (2, size, size)
    config = replace(SHORT, rho=0.0, steps=1, step_size=2.0, sigma=0.5)
    x = images(3, shape)
    purified, _ = run(trace_purifier(net, bank(config, shape), config, shape), x)
    expected, _ = purify(net, torch.from_numpy(x), bank(config, shape), config)
    assert float((expected - torch.from_numpy(x)).abs().max()) > 0.01
    np.testing.assert_allclose(purified, expected.numpy(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_is_purified_to_the_same_bits_in_every_batch(purifier: ModelProto, threads: int) -> None:
    assert_same_bits_in_every_batch(purifier, images(64), threads)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_also_where_rows_do_not_fill_vector_registers(norm: str) -> None:
    shape = (3, 7, 5)
    config = replace(SHORT, bank_size=8, steps=1, norm=norm)
    model = trace_purifier(randomised(UNet(3, 24, (1,))), bank(config, shape), config, shape)
    assert_same_bits_in_every_batch(model, images(24, shape), threads=2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("widths", [(16, 32, 64), (5, 11, 37)])
def test_an_image_is_classified_to_the_same_bits_in_every_batch(widths: tuple[int, ...], threads: int) -> None:
    model = trace_classifier(fold_batch_norm(SmallCNN(1, 10, widths)), DIGITS, "classifier")
    assert_same_bits_in_every_batch(model, images(64), threads)


def test_a_classifier_answers_log_probabilities_from_few_nodes() -> None:
    network = fold_batch_norm(SmallCNN(1, 10, (16, 32, 64)))
    model = trace_classifier(network, DIGITS, "member_007")
    x = images(5)
    (answer,) = run(model, x)
    expected = torch.log_softmax(network(torch.from_numpy(x)), dim=1).numpy()
    np.testing.assert_allclose(answer, expected, atol=1e-5)
    assert answer.dtype == np.float32
    assert [value.name for value in model.graph.output] == ["log_probabilities"]
    assert operators(model) == {"Mul", "Sub", "Conv", "Relu", "MaxPool", "Reshape", "LogSoftmax"}
    assert len(model.graph.node) == 13
    assert all(node.name.startswith("member_007/") for node in model.graph.node)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x + nn.functional.relu6(self.norm(self.convolution(x)))], dim=1)


class Gated(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        value, gate, rest = x.split([2, 2, 1], dim=1)
        left, right = (value * gate.sigmoid()).chunk(2, dim=-1)
        return torch.cat([(left + right).flatten(1), rest.flatten(1)], dim=1)


NETWORKS = {
    "gates": nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), Gated(), nn.Linear(200, 5)),
    "residual": nn.Sequential(
        nn.Conv2d(3, 6, 3), Residual(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)
    ),
    "two linear layers": nn.Sequential(nn.Flatten(), nn.Linear(300, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 5)),
    "pools": nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Hardswish(),
        nn.AvgPool2d(2),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(3, 1, 1),
        nn.Flatten(),
        nn.Linear(100, 5),
    ),
    "global mean": nn.Sequential(nn.Conv2d(3, 5, 3), nn.Hardsigmoid(), nn.AdaptiveAvgPool2d((1, 1)))
    .append(nn.Flatten())
    .append(nn.ELU()),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_usual_layers_are_exported_without_matrix_products_and_the_same_in_every_batch(name: str) -> None:
    network = randomised(NETWORKS[name], scale=0.3)
    model = trace_classifier(network, (3, 10, 10), "classifier")
    x = images(16, (3, 10, 10))
    expected = torch.log_softmax(network(torch.from_numpy(x)), dim=1).numpy()
    np.testing.assert_allclose(run(model, x)[0], expected, atol=1e-5)
    assert operators(model).isdisjoint({"Gemm", "MatMul"})
    assert_same_bits_in_every_batch(model, x, threads=2)


def test_exporting_leaves_the_network_as_it_was() -> None:
    network = SmallCNN(1, 10, (4, 4, 4)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace_classifier(network, DIGITS, "classifier")
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_stage_can_be_given_another_scope() -> None:
    model = trace_classifier(fold_batch_norm(SmallCNN(1, 10, (4, 4, 4))), DIGITS, "trained_3")
    renamed = rename_scope(model, "member_000")
    x = images(3)
    np.testing.assert_array_equal(run(renamed, x)[0], run(model, x)[0])
    assert b"trained_3" not in renamed.SerializeToString()
    assert model.graph.node[0].name.startswith("trained_3/")


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        return flat @ flat.t()


class BatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(dim=0)).flatten(1)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Products(), r"answers values of shape \['batch', 'batch'\], expected logits"),
        (BatchMean(), "a verdict may depend on one image only"),
    ],
)
def test_what_cannot_be_exported_is_named(module: nn.Module, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        trace_classifier(module, DIGITS, "classifier")


def test_a_bank_of_another_shape_is_refused(net: UNet) -> None:
    with pytest.raises(RecipeError, match="make it with hadamard_bank"):
        trace_purifier(net, bank(SHORT), replace(SHORT, bank_size=4), DIGITS)
