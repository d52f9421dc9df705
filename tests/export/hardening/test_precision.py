"""Half precision: where it is used, where it is not, and what it costs in accuracy."""

import copy
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from tests.export.defended_files import SEES
from tests.export.stage_runs import DIGITS, assert_same_bits_in_every_batch, bank, images, run, session
from torch import nn

from s2ap_defend import DefendedClassifier, ModelFileError, RecipeError, Verdicts
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.precision_record import PrecisionRecord
from s2ap_defend.stages import cut_stage
from s2ap_defend.verification.golden import write_with_golden
from s2ap_defend.verification.verify import verify_file
from s2ap_export.graph.compose import compose
from s2ap_export.hardening.precision import to_half
from s2ap_export.tracing.trace import trace_classifier, trace_images, trace_purifier
from s2ap_train.models import SmallCNN, fold_batch_norm
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier import Purification, UNet, variants

ROUNDOFF = 2.0**-11  # of float16
CONFIG = Purification(sigma=0.2, radius=0.3, steps=2, rho=0.2, bank_size=2)


def convolutions(stage: ModelProto) -> int:
    return sum(node.op_type in ("Conv", "ConvTranspose") for node in stage.graph.node)


def tolerance(stage: ModelProto, moved: float) -> float:
    """Of a pixel: independent roundings of the inputs, weights and results of all convolutions one after the other,
    each relative to how far the purifier moves pixels, add up like a random walk (Higham and Mary 2019)."""
    return ROUNDOFF * math.sqrt(3 * convolutions(stage)) * moved


@pytest.fixture(scope="module", params=["full", "j_free"])
def stage(request: pytest.FixtureRequest, trained_net: UNet) -> ModelProto:
    return trace_purifier(trained_net, bank(CONFIG), replace(CONFIG, mode=request.param), DIGITS)


def test_half_purifies_as_single_does_within_the_roundings_of_its_convolutions(
    stage: ModelProto, digits: np.ndarray
) -> None:
    expected, expected_error = run(stage, digits)
    bound = tolerance(stage, float(np.abs(expected - digits).max()))
    assert bound < 0.005  # a pixel of 8 bits
    found, error = assert_same_bits_in_every_batch(to_half(stage), digits)
    assert found.dtype == error.dtype == np.float32
    assert 0 < float(np.abs(found - expected).max()) < bound
    np.testing.assert_allclose(error, expected_error, rtol=ROUNDOFF * math.sqrt(3 * convolutions(stage)))


def test_the_twin_rounds_as_the_file_says_and_differentiates_it(stage: ModelProto, digits: np.ndarray) -> None:
    (expected, _), half = run(stage, digits), torch_stage(to_half(stage))
    bound = tolerance(stage, float(np.abs(expected - digits).max()))
    x = torch.from_numpy(digits).requires_grad_()
    found = half(x)[0]
    assert 0 < float((found.detach() - torch.from_numpy(expected)).abs().max()) < bound
    (gradient,) = torch.autograd.grad(found.square().sum(), x)
    reference = torch.autograd.grad(torch_stage(stage)(x)[0].square().sum(), x)[0]
    alike = torch.nn.functional.cosine_similarity(gradient.flatten(1), reference.flatten(1))
    assert float(alike.median()) > 0.999  # not the least: a pixel near its clamp may lie on the other side


def types(stage: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(stage, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.output, *inferred.input]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {t.name: t.data_type for t in inferred.initializer}


def test_convolutions_and_silu_are_in_half_and_nothing_else(stage: ModelProto) -> None:
    half = to_half(stage)
    element = types(half)
    kinds = Counter(n.op_type for n in half.graph.node if element[n.output[0]] == TensorProto.FLOAT16)
    sigmoids = sum(node.op_type == "Sigmoid" for node in stage.graph.node)
    assert kinds.pop("Conv") + kinds.pop("ConvTranspose") == convolutions(stage)
    assert kinds.pop("Sigmoid") == kinds.pop("Mul") == sigmoids
    assert set(kinds) == {"Cast"}
    for node in half.graph.node:
        if "Reduce" in node.op_type or "Normalization" in node.op_type or node.op_type in ("Clip", "Sqrt"):
            assert {element[name] for name in node.input if name} <= {TensorProto.FLOAT, TensorProto.INT64}
    assert [element[o.name] for o in (*half.graph.input, *half.graph.output)] == [TensorProto.FLOAT] * 3


def test_casts_are_shared_and_all_names_keep_the_scope(stage: ModelProto) -> None:
    half = to_half(stage)
    casts = [(n.input[0], n.attribute[0].i) for n in half.graph.node if n.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    names = {name for node in half.graph.node for name in (node.name, *node.input, *node.output)} - {""}
    assert {name for name in names if not name.startswith("purifier/")} <= {
        "image",
        "purified",
        "reconstruction_error",
    }
    assert len({node.name for node in half.graph.node}) == len(half.graph.node)


def test_weights_are_stored_once_in_two_bytes(stage: ModelProto) -> None:
    def kernels(model: ModelProto) -> dict[str, np.ndarray]:
        return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 4}

    single, half = kernels(stage), kernels(to_half(stage))
    convolved = {node.input[1] for node in stage.graph.node if node.op_type in ("Conv", "ConvTranspose")}
    assert set(half) == set(single)
    for name, weight in half.items():
        assert weight.dtype == (np.float16 if name in convolved else np.float32)
        np.testing.assert_array_equal(weight, single[name].astype(weight.dtype))


class BiasUsedTwice(nn.Module):
    """A convolution's bias is also the shift of a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 4, 3)
        self.register_buffer("scale", torch.linspace(0.5, 2, 4).reshape(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.convolution.bias
        assert bias is not None
        return (self.convolution(x) * self.scale + bias.reshape(1, 4, 1, 1)).flatten(1)[:, :5]


def test_a_tensor_that_both_precisions_read_is_stored_in_both() -> None:
    torch.manual_seed(0)
    stage = trace_classifier(BiasUsedTwice(), DIGITS, "member_000")
    half = to_half(stage)
    weights = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert weights["member_000/convolution.bias"].dtype == np.float32
    assert weights["member_000/convolution.bias_half"].dtype == np.float16
    x = images(3)
    bound = 4 * ROUNDOFF * float(np.abs(run(stage, x)[0]).max())  # three roundings, and the logarithm of a sum
    np.testing.assert_allclose(run(half, x)[0], run(stage, x)[0], rtol=0, atol=bound)


def test_sums_that_are_written_as_convolutions_stay_in_single() -> None:
    shape = (3, 7, 5)  # rows that do not fill registers
    net = UNet(3, 24, (1,), seed=1)
    config = replace(CONFIG, steps=1)
    stage = trace_purifier(net, bank(config, shape), config, shape)
    element = types(to_half(stage))
    weights = {t.name: numpy_helper.to_array(t) for t in stage.graph.initializer}
    shapes = {n.output[0]: weights[n.input[1]].shape for n in stage.graph.node if n.op_type == "Conv"}
    sums = [n for n in stage.graph.node if shapes.get(n.output[0]) == (1, config.bank_size, 1, 1)]
    assert len(sums) == 2  # the means over the bank in the two gradients of a step
    assert all(element[node.output[0]] == TensorProto.FLOAT for node in sums)
    assert_same_bits_in_every_batch(to_half(stage), images(9, shape))


def naive(stage: ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same stage with everything in float16, as a converter without exceptions makes it."""
    purified, error = torch_stage(stage, dtype=torch.float16)(torch.from_numpy(x).half())
    return purified.float().numpy(), error.float().numpy()


def test_everything_in_half_is_measurably_worse(stage: ModelProto, digits: np.ndarray) -> None:
    expected, expected_error = run(stage, digits)
    ours = [values.numpy() for values in torch_stage(to_half(stage))(torch.from_numpy(digits))]
    worse = naive(stage, digits)

    def root_mean_square(found: np.ndarray, wanted: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found - wanted) ** 2)))

    assert root_mean_square(worse[0], expected) > 2 * root_mean_square(ours[0], expected)
    assert root_mean_square(worse[1], expected_error) > 2 * root_mean_square(ours[1], expected_error)


def test_norms_in_half_overflow_where_norms_in_single_do_not(trained_net: UNet, digits: np.ndarray) -> None:
    """A normalised layer may have weights of any scale: 512 times larger ones change nothing but the squares."""
    large = copy.deepcopy(trained_net)
    for block in (*large.down_blocks, large.middle, *large.up_blocks):
        for parameter in block.convolution1.parameters():
            parameter.data *= 512
    config = replace(CONFIG, mode="full", steps=1)
    stage = trace_purifier(large, bank(config), config, DIGITS)
    expected, _ = run(stage, digits)
    moved = float(np.abs(expected - digits).max())
    found = torch_stage(to_half(stage))(torch.from_numpy(digits))[0].numpy()
    assert float(np.abs(found - expected).max()) < tolerance(stage, moved)
    assert not float(np.abs(naive(stage, digits)[0] - expected).max()) < moved / 4  # or not a number


def test_a_file_with_a_purifier_in_half_is_composed_and_cut(
    tiny_stages: tuple[ModelProto, ModelProto, list[ModelProto]], tiny_model_path: Path, digits: np.ndarray
) -> None:
    purifier, classifier, members = tiny_stages
    half = to_half(purifier)
    test = open_model_file(tiny_model_path).manifest.to_test()
    model = compose(half, classifier, members, test, sees=SEES, purify="always")
    expected = run(half, digits)
    for values, wanted in zip(run(cut_stage(model, "purifier"), digits), expected, strict=True):
        np.testing.assert_array_equal(values, wanted)
    (whole,) = session(model).run(["purified"], {"image": digits})
    np.testing.assert_array_equal(whole, expected[0])


@pytest.mark.parametrize("kind", ["classifier", "one step"])
def test_other_stages_are_converted_too(kind: str, trained_net: UNet, digits: np.ndarray) -> None:
    stage = (
        trace_images(variants.one_step_denoise(trained_net, 0.2).exact, DIGITS)
        if kind == "one step"
        else trace_classifier(fold_batch_norm(SmallCNN(1, 10, (8, 8, 16))), DIGITS, "classifier")
    )
    expected = run(stage, digits)[0]
    scale = float(np.abs(expected).max())
    (found,) = assert_same_bits_in_every_batch(to_half(stage), digits)
    assert 0 < float(np.abs(found - expected).max()) < tolerance(stage, scale)


def test_between_convolutions_what_picks_values_stays_in_half_and_the_softmax_in_single(digits: np.ndarray) -> None:
    torch.manual_seed(0)
    stage = trace_classifier(fold_batch_norm(SmallCNN(1, 10, (8, 8, 16)).eval()), DIGITS, "classifier")
    half = to_half(stage)
    element = types(half)
    kinds = Counter(n.op_type for n in half.graph.node if element[n.output[0]] == TensorProto.FLOAT16)
    assert kinds["Conv"] == convolutions(stage)
    assert kinds["Relu"] == sum(node.op_type == "Relu" for node in stage.graph.node) > 1
    assert not kinds["LogSoftmax"] + kinds["ReduceMean"]
    casts = sum(node.op_type == "Cast" for node in half.graph.node)
    assert casts <= kinds["Conv"], "not two a convolution"
    expected, (found,) = run(stage, digits)[0], assert_same_bits_in_every_batch(half, digits)
    rebuilt = torch_stage(half)(torch.from_numpy(digits))[0].numpy()
    scale = float(np.abs(expected).max())
    assert 0 < float(np.abs(found - expected).max()) < tolerance(stage, scale)
    assert float(np.abs(rebuilt - expected).max()) < tolerance(stage, scale)


def test_a_file_in_half_is_sealed_verified_and_staged_with_the_same_verdicts(
    tiny_stages: tuple[ModelProto, ModelProto, list[ModelProto]], tiny_model_path: Path, tmp_path: Path
) -> None:
    file = open_model_file(tiny_model_path)
    purifier, classifier, members = tiny_stages
    stages = (purifier, to_half(classifier), [to_half(member) for member in members])
    test = file.manifest.to_test()
    model = compose(*stages, test, sees=SEES, purify=file.manifest.decision.purify)
    record = PrecisionRecord(classifier="float16", comparison=None)
    half = tuple(one.model_copy(update={"precision": "float16"}) for one in file.manifest.members)
    manifest = file.manifest.model_copy(update={"members": half, "precision": record})
    write_with_golden(model, manifest, tmp_path / "half.onnx")
    found = verify_file(tmp_path / "half.onnx")
    assert found.golden
    assert [one for one in found.checks if one.state != "passed"] == []
    x = images(16)
    whole, staged = (
        DefendedClassifier.load(tmp_path / "half.onnx", device="cpu", threads=1, executor=name)(x)
        for name in ("whole", "staged")
    )
    for name in Verdicts.FIELDS:
        rounding = 1e-6 if name == "probabilities" else 0.0  # engines fuse casts of the whole file in another way
        np.testing.assert_allclose(getattr(whole, name), getattr(staged, name), rtol=0, atol=rounding, err_msg=name)
    for wrong, message in (
        ({"precision": None}, "the weights of classifier are float16, the manifest says float32"),
        ({"members": file.manifest.members}, "the weights of member_000 are float16, the manifest says float32"),
    ):
        write_model_file(model, manifest.model_copy(update=wrong), tmp_path / "wrong.onnx")
        with pytest.raises(ModelFileError, match=message):
            open_model_file(tmp_path / "wrong.onnx")


def test_what_cannot_be_converted_is_refused(stage: ModelProto) -> None:
    half = to_half(stage)
    with pytest.raises(RecipeError, match="stage purifier is in half precision already"):
        to_half(half)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))
    net[0].weight.data[0, 0, 0, 0] = 7e4
    with pytest.raises(RecipeError, match=r"holds 7e\+04, float16 ends at 65504"):
        to_half(trace_classifier(net, DIGITS, "classifier"))


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs a CUDA device and onnxruntime-gpu's libraries")
def test_a_gpu_agrees_with_the_cpu_in_half(stage: ModelProto, digits: np.ndarray) -> None:
    expected, _ = run(stage, digits)
    ort.preload_dlls()
    runner = ort.InferenceSession(to_half(stage).SerializeToString(), providers=["CUDAExecutionProvider"])
    assert runner.get_providers()[0] == "CUDAExecutionProvider"
    found = runner.run(None, {"image": digits})[0]
    bound = tolerance(stage, float(np.abs(expected - digits).max()))
    assert 0 < float(np.abs(found - expected).max()) < bound
