"""Convolutions of 8 bits: what is rounded and how, parity with integers in numpy and with ONNX Runtime, whole files."""

import copy
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from tests.export.defended_files import SEES
from tests.export.stage_runs import DIGITS, assert_same_bits_in_every_batch, images, run
from torch import nn

from s2ap_defend import DefendedClassifier, ModelFileError, RecipeError, Verdicts
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionRecord, weights_precision
from s2ap_defend.stages import cut_stage
from s2ap_defend.verification.golden import write_with_golden
from s2ap_defend.verification.lint import lint_stage
from s2ap_defend.verification.verify import verify_file
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.int8 import to_int8
from s2ap_export.hardening.precision import to_half
from s2ap_export.hardening.ranges import Magnitudes
from s2ap_export.tracing.trace import trace_classifier
from s2ap_train.models import SmallCNN, create, fold_batch_norm
from s2ap_train.onnx_graphs import torch_stage

LEVEL = 2.0**-8


def small_cnn() -> ModelProto:
    torch.manual_seed(0)
    return trace_classifier(fold_batch_norm(SmallCNN(1, 10, (8, 8, 16), seed=0).eval()), DIGITS, "classifier")


@pytest.fixture(scope="module", params=[True, False], ids=["symmetric", "one-sided"])
def symmetric(request: pytest.FixtureRequest) -> bool:
    return request.param


def weights(stage: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in stage.graph.initializer}


def rounded_in_numpy(stage: ModelProto, node: NodeProto, x: np.ndarray) -> np.ndarray:
    """QuantizeLinear by its definition in the ONNX standard."""
    known = weights(stage)
    scale, zero = known[node.input[1]], known[node.input[2]].astype(np.int64)
    return np.clip(np.rint(x / scale).astype(np.int64) + zero, -128, 127).astype(np.int8)


def test_a_convolution_is_the_sum_of_integers_that_numpy_computes(symmetric: bool, digits: np.ndarray) -> None:
    """The whole way of one layer, by hand: integers of the image, of the weights, their sum, and its 8 bits."""
    stage = to_int8(small_cnn(), digits, symmetric=symmetric)
    kinds = {node.output[0]: node for node in stage.graph.node}
    convolution = next(node for node in stage.graph.node if node.op_type == "Conv")
    into, weight = kinds[convolution.input[0]], kinds[convolution.input[1]]
    read, given = kinds[into.input[0]], next(n for n in stage.graph.node if convolution.output[0] in n.input)
    known = weights(stage)
    shown = copy.deepcopy(stage)
    for name in (read.input[0], given.output[0]):
        shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    _, before, found = run(shown, digits)
    x = rounded_in_numpy(stage, read, before).astype(np.int64) - known[read.input[2]]
    w, steps = known[weight.input[0]].astype(np.int64), known[weight.input[1]].astype(np.float64)
    assert np.abs(w).max() == 127
    pads = {a.name: list(a.ints) for a in convolution.attribute}["pads"]
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    total = np.einsum("nchwij,ocij->nohw", windows, w)
    scale = steps * float(known[read.input[1]])
    exact = total * scale[:, None, None] + known[convolution.input[2]].astype(np.float64)[:, None, None]
    wanted = rounded_in_numpy(stage, given, exact)
    apart = np.abs(found.astype(np.int64) - wanted)
    assert apart.max() <= 1, "a number between two levels may go either way"
    assert (apart > 0).mean() < 1e-3


def test_engine_and_twin_answer_alike_and_near_the_stage_in_float32(symmetric: bool, digits: np.ndarray) -> None:
    single = small_cnn()
    stage = to_int8(single, digits, symmetric=symmetric)
    expected = run(single, digits)[0]
    (found,) = assert_same_bits_in_every_batch(stage, digits)
    twin = torch_stage(stage)(torch.from_numpy(digits))[0].detach().numpy()
    scale = float(np.abs(expected).max())
    count = sum(node.op_type == "Conv" for node in stage.graph.node)
    assert 0 < float(np.abs(found - expected).max()) < 3 * LEVEL * np.sqrt(3 * count) * scale
    assert float(np.abs(found - twin).max()) < 2 * LEVEL * scale  # where a number lies between two levels
    assert float(np.median(np.abs(found - twin))) < 1e-5 * scale


def test_gradients_pass_the_rounding_and_end_where_values_are_cut_off(digits: np.ndarray) -> None:
    single = small_cnn()
    stage = to_int8(single, digits)
    x = torch.from_numpy(digits)

    def gradient(model: ModelProto, images: torch.Tensor, *, straight_through: bool = False) -> torch.Tensor:
        images = images.clone().requires_grad_()
        (answer,) = torch_stage(model, straight_through=straight_through)(images)
        (slope,) = torch.autograd.grad(answer[:, 3].sum(), images)
        return slope

    alike = torch.nn.functional.cosine_similarity(gradient(stage, x).flatten(1), gradient(single, x).flatten(1))
    assert float(alike.median()) > 0.95
    beyond = 10 * x + 5  # far beyond what the first rounding reaches
    assert float(gradient(stage, beyond).abs().max()) == 0
    assert float(gradient(stage, beyond, straight_through=True).abs().max()) > 0


def test_weights_have_a_scale_for_each_channel_and_values_one(digits: np.ndarray) -> None:
    single, known = small_cnn(), None
    stage = to_int8(single, digits)
    known, before = weights(stage), weights(single)
    int8 = [name for name, values in known.items() if values.dtype == np.int8 and values.ndim == 4]
    assert len(int8) == sum(node.op_type == "Conv" for node in single.graph.node) - 1
    for name in int8:
        exact, steps = before[name.removesuffix("_int8")], known[name.replace("_int8", "_scale")]
        assert steps.shape == exact.shape[:1]
        again = known[name] * steps[:, None, None, None]
        assert (np.abs(again - exact) <= steps[:, None, None, None] / 2 * (1 + 1e-6)).all()
        assert name.removesuffix("_int8") not in known, "stored once"
    assert {known[name].shape for name in known if name.endswith("rounded_scale")} == {()}
    assert lint_stage(stage) == []


def test_the_last_layer_and_the_softmax_stay_in_float32(symmetric: bool, digits: np.ndarray) -> None:
    stage = to_int8(small_cnn(), digits, symmetric=symmetric)
    made = {name: node for node in stage.graph.node for name in node.output}
    *others, last = [node for node in stage.graph.node if node.op_type == "Conv"]
    assert last.input[1] in weights(stage)
    for node in others:
        assert made[node.input[0]].op_type == made[node.input[1]].op_type == "DequantizeLinear"
    answers = run(stage, digits)[0]
    best = np.sort(answers, axis=1)
    assert (best[:, -1] > best[:, -2]).all(), "no two classes are equal"


def test_onnx_runtime_computes_in_integers_and_one_sided_without_a_relu(digits: np.ndarray, tmp_path: Path) -> None:
    kinds = {}
    for symmetric in (True, False):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{symmetric}.onnx")
        options.log_severity_level = 3  # a graph for this machine
        stage = to_int8(small_cnn(), digits, symmetric=symmetric)
        assert {node.domain for node in stage.graph.node} == {""}
        ort.InferenceSession(stage.SerializeToString(), options, providers=["CPUExecutionProvider"])
        kinds[symmetric] = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    convolutions = sum(node.op_type == "Conv" for node in small_cnn().graph.node)
    assert kinds[True]["QLinearConv"] == kinds[False]["QLinearConv"] == convolutions - 1
    assert kinds[True]["Relu"] == convolutions - 1
    assert not kinds[False]["Relu"]


def test_one_sided_numbers_lose_less_and_are_not_for_tensorrt(digits: np.ndarray) -> None:
    single = small_cnn()
    expected = run(single, digits)[0]

    def error(*, symmetric: bool) -> float:
        found = run(to_int8(single, digits, symmetric=symmetric), digits)[0]
        return float(np.sqrt(np.mean((found - expected) ** 2)))

    assert error(symmetric=False) < error(symmetric=True)
    refused = lint_stage(to_int8(single, digits, symmetric=False))
    assert refused[0].endswith("QuantizeLinear with a zero point that is not int8 0")


def test_networks_with_shortcuts_are_converted_too(symmetric: bool) -> None:
    shape = (3, 16, 16)
    network = create({"name": "resnet18", "width": 0.0625}, shape, 10)
    x = images(12, shape)
    network.train()(torch.from_numpy(x))  # statistics of normalisations
    single = trace_classifier(fold_batch_norm(network.eval()), shape, "member_007")
    stage = to_int8(single, x, symmetric=symmetric)
    (found,) = assert_same_bits_in_every_batch(stage, x)
    expected = run(single, x)[0]
    count = sum(node.op_type == "Conv" for node in stage.graph.node)
    assert float(np.abs(found - expected).max()) < 3 * LEVEL * np.sqrt(3 * count) * float(np.abs(expected).max())
    named = {name for node in stage.graph.node for name in (node.name, *node.input, *node.output)}
    assert {name for name in named if not name.startswith("member_007/")} <= {"image", "log_probabilities", ""}
    assert len({node.name for node in stage.graph.node}) == len(stage.graph.node)


def test_the_step_is_that_of_least_squared_error() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(20_000).astype(np.float32)
    values[0] = 40.0  # the only one so far out: it is cut off
    seen = Magnitudes()
    for part in np.split(values, 4):
        seen.add(part)

    def error(step: float) -> float:
        return float(np.mean((values - np.rint(values / step).clip(-127, 127) * step) ** 2))

    steps = np.linspace(0.25, 1, 64) * 40.0 / 127
    assert seen.step(127) < 39.0 / 127
    assert error(seen.step(127)) < 1.02 * min(map(error, steps))
    assert Magnitudes().step(127) == 1.0, "nothing but zeros"


def test_filters_of_zeros_have_their_bias_and_small_filters_a_large_one(digits: np.ndarray) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():
        net[0].weight[0] = 0
        net[0].bias[0] = 0.7
        net[0].weight[1] *= 1e-9
        net[0].bias[1] = 0.4
    single = trace_classifier(net, DIGITS, "classifier")
    found, expected = run(to_int8(single, digits), digits)[0], run(single, digits)[0]
    assert float(np.abs(found - expected).max()) < 3 * LEVEL * 3 * float(np.abs(expected).max())


def test_what_cannot_be_converted_is_refused(digits: np.ndarray) -> None:
    stage = to_int8(small_cnn(), digits)
    assert weights_precision(stage.graph.initializer) == "int8"
    with pytest.raises(RecipeError, match="stage classifier is in int8 already; convert the float32 stage, once"):
        to_int8(stage, digits)
    with pytest.raises(RecipeError, match="stage classifier is in float16 already"):
        to_int8(to_half(small_cnn()), digits)
    linear = trace_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), DIGITS, "classifier")
    with pytest.raises(RecipeError, match="no convolution before its last layer that could be in int8"):
        to_int8(linear, digits)
    spoilt = small_cnn()
    name = next(node.input[1] for node in spoilt.graph.node if node.op_type == "Conv")
    for tensor in spoilt.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor).copy()
            values[0] = np.inf
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    with pytest.raises(RecipeError, match=r"is not finite on 64 fitting images; keep the stage in float32"):
        to_int8(spoilt, digits)


@pytest.mark.parametrize("purify", ["always", "suspicious"])
def test_a_file_in_int8_is_sealed_verified_and_staged_with_the_same_verdicts(
    purify: str,
    tiny_stages: tuple[ModelProto, ModelProto, list[ModelProto]],
    tiny_model_path: Path,
    abstaining_model_path: Path,
    digits: np.ndarray,
    tmp_path: Path,
) -> None:
    file = open_model_file({"always": tiny_model_path, "suspicious": abstaining_model_path}[purify])
    purifier, classifier, members = tiny_stages
    stages = (to_half(purifier), to_int8(classifier, digits), [to_int8(member, digits) for member in members])
    model = compose(*stages, file.manifest.to_test(), sees=SEES, purify=file.manifest.decision.purify)
    for scope, stage in (("classifier", stages[1]), ("member_004", stages[2][4])):
        np.testing.assert_array_equal(run(cut_stage(model, scope), digits)[0], run(stage, digits)[0])
    said = file.manifest
    record = PrecisionRecord(classifier="int8", comparison=None)
    reduced = tuple(one.model_copy(update={"precision": "int8"}) for one in said.members)
    half = said.purifier.model_copy(update={"precision": "float16"})
    manifest = said.model_copy(update={"members": reduced, "precision": record, "purifier": half})
    path = tmp_path / "int8.onnx"
    write_with_golden(model, manifest, path)
    found = verify_file(path)
    assert [one for one in found.checks if one.state != "passed"] == []
    whole, staged = (
        DefendedClassifier.load(path, device="cpu", threads=1, executor=name)(digits) for name in ("whole", "staged")
    )
    plain = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    alone = [plain.run(list(Verdicts.FIELDS), {"image": digits[i : i + 1]}) for i in range(len(digits))]
    for i, name in enumerate(Verdicts.FIELDS):
        rounding = 1e-6 if name in ("probabilities", "purified", "reconstruction_error") else 0.0  # of the purifier
        values = getattr(whole, name)
        np.testing.assert_allclose(values, getattr(staged, name), rtol=0, atol=rounding, err_msg=name)
        np.testing.assert_allclose(np.concatenate([one[i] for one in alone]), values, rtol=0, atol=rounding)
    write_model_file(model, manifest.model_copy(update={"members": said.members}), tmp_path / "wrong.onnx")
    with pytest.raises(ModelFileError, match="the weights of member_000 are int8, the manifest says float32"):
        open_model_file(tmp_path / "wrong.onnx")
