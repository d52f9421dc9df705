"""Every deterministic purifier, as ONNX Runtime runs it, is the one that PyTorch evaluates and attacks."""

import itertools
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import ModelProto, numpy_helper
from tests.export.defended_files import SEES
from tests.export.stage_runs import DIGITS, assert_same_bits_in_every_batch, bank, operators, run, session
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, PURIFIER, cut_stage
from s2ap_export.graph.compose import compose
from s2ap_export.tracing.trace import trace_images, trace_purifier
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier import Purification, UNet, purify, variants

PARITY = 1e-5  # largest difference of a pixel in [0, 1], float32
SHORT = Purification(sigma=0.2, radius=0.1, steps=2, step_size=0.7, rho=0.2, bank_size=2)
ASCENTS = {"plain": {"rho": 0.0}, "sam": {}, "reuse": {"reuse_ascent": True}}
BALLS = {"linf": {}, "l2": {"norm": "l2", "radius": 0.6}}
SIGMAS = {"one sigma": {}, "schedule": {"sigma": (0.3, 0.15)}}
PURIFIERS = {
    f"{mode} {ascent} {ball} {sigma}": replace(
        SHORT,
        mode=mode,
        **ASCENTS[ascent],  # type: ignore[arg-type]
        **BALLS[ball],  # type: ignore[arg-type]
        **SIGMAS[sigma],  # type: ignore[arg-type]
    )
    for mode, ascent, ball, sigma in itertools.product(("full", "j_free"), ASCENTS, BALLS, SIGMAS)
    # The ball does not know sigma: all pairs are there; what both are by default, test_trace.py has.
    if (ball, sigma) in {("linf", "schedule"), ("l2", "one sigma")} or (ascent, ball) == ("reuse", "l2")
}
OTHERS = {
    "off": lambda _: variants.off(),
    "one step": lambda net: variants.one_step_denoise(net, 0.2),
    "score-opt": lambda net: variants.score_opt(net, DIGITS, steps=3),
    "likelihood": lambda net: variants.likelihood_maximisation(net, DIGITS, radius=0.1, steps=3),
    "adam, two draws": lambda net: variants.likelihood_maximisation(net, DIGITS, radius=0.1, steps=1, draws=2),
    "three bits": lambda _: variants.bit_depth(3),
}


def assert_parity(found: np.ndarray, expected: Tensor) -> None:
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=PARITY)


def gradient(function: object, x: np.ndarray) -> Tensor:
    """Of the sum of squares of what a function makes of images."""
    images = torch.from_numpy(x).requires_grad_()
    purified = function(images)  # type: ignore[operator]
    return torch.autograd.grad((purified[0] if isinstance(purified, tuple) else purified).square().sum(), images)[0]


def assert_twin_is_differentiated_alike(stage: ModelProto, function: object, x: np.ndarray) -> None:
    """Float32 gradients through two steps of a descent: a relative error of 1e-3 is a fault, rounding is below 1e-5."""
    found, expected = gradient(torch_stage(stage), x), gradient(function, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()) + 1e-12)


@pytest.mark.parametrize("name", PURIFIERS)
def test_onnx_runtime_purifies_as_torch_does(name: str, flat_net: UNet, digits: np.ndarray) -> None:
    config = PURIFIERS[name]
    stage = trace_purifier(flat_net, bank(config), config, DIGITS)
    purified, error = assert_same_bits_in_every_batch(stage, digits)
    expected, expected_error = purify(flat_net, torch.from_numpy(digits), bank(config), config)
    moved = np.abs(purified - digits).reshape(len(digits), -1)
    assert moved.max() > 0.05
    runner = session(stage)
    for count in (1, 5, 64):
        found = runner.run(None, {"image": digits[:count]})
        assert_parity(found[0], expected[:count])
        np.testing.assert_allclose(found[1], expected_error[:count].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(error, found[1])
    assert_twin_is_differentiated_alike(stage, lambda x: purify(flat_net, x, bank(config), config), digits[:4])


@pytest.mark.parametrize("name", OTHERS)
def test_what_stands_in_the_purifiers_place_is_exported_as_well(name: str, flat_net: UNet, digits: np.ndarray) -> None:
    variant = OTHERS[name](flat_net)
    assert variant.traceable
    stage = trace_images(variant.exact, DIGITS)
    (purified,) = assert_same_bits_in_every_batch(stage, digits)
    expected = variant.purify(torch.from_numpy(digits))
    assert np.array_equal(purified, digits) == (name == "off")
    for count in (1, 5, 64):
        assert_parity(run(stage, digits[:count])[0], expected[:count])
    if name != "three bits":
        assert_twin_is_differentiated_alike(stage, variant.exact, digits[:4])


def test_rounding_has_the_gradient_zero_in_the_twin_too(digits: np.ndarray) -> None:
    stage = trace_images(variants.bit_depth(3).exact, DIGITS)
    assert not gradient(torch_stage(stage), digits).any()


def test_rounding_ties_go_to_even_on_both_sides() -> None:
    x = np.full((1, *DIGITS), 0.5, dtype=np.float32)  # half way between 0 and 1 in one bit: 0, as torch rounds
    assert not run(trace_images(variants.bit_depth(1).exact, DIGITS), x)[0].any()


def test_steps_of_one_sigma_share_what_steps_of_two_do_not(flat_net: UNet) -> None:
    @cache
    def weights(sigma: float | tuple[float, ...]) -> int:
        config = replace(SHORT, steps=3, sigma=sigma, mode="j_free")
        stage = trace_purifier(flat_net, bank(config), config, DIGITS)
        return sum(numpy_helper.to_array(t).size for t in stage.graph.initializer)

    convolutions = sum(p.numel() for p in flat_net.parameters() if p.dim() == 4)
    assert weights((0.2, 0.2, 0.2)) == weights(0.2)
    assert weights(0.2) < weights((0.2, 0.1, 0.2)) < weights(0.2) + convolutions  # a modulation more, no convolutions
    assert weights((0.2, 0.1, 0.2)) == weights((0.1, 0.2, 0.2))


@pytest.mark.parametrize("count", [0, 1, 7])
def test_off_returns_the_image_and_no_error(trained_net: UNet, count: int) -> None:
    config = Purification(steps=0)
    stage = trace_purifier(trained_net, bank(config), config, DIGITS)
    assert operators(stage) == {"Identity", "Shape", "ConstantOfShape"}
    assert not any(t.dims for t in stage.graph.initializer)  # neither the network nor the bank is in the file
    x = np.random.default_rng(1).random((count, *DIGITS), dtype=np.float32)
    purified, error = run(stage, x)
    np.testing.assert_array_equal(purified, x)
    np.testing.assert_array_equal(error, np.zeros(count, dtype=np.float32))
    torch.testing.assert_close(torch_stage(stage)(torch.from_numpy(x)), (torch.from_numpy(x), torch.zeros(count)))


def test_a_file_whose_purifier_is_off_is_composed_and_cut_like_any_other(
    tiny_stages: tuple[ModelProto, ModelProto, list[ModelProto]],
    tiny_model_path: Path,
    trained_net: UNet,
    random_images: np.ndarray,
) -> None:
    _, classifier, members = tiny_stages
    test = open_model_file(tiny_model_path).manifest.to_test()
    config = Purification(steps=0)
    stage = trace_purifier(trained_net, bank(config), config, DIGITS, PURIFIER)
    model = compose(stage, classifier, members, test, sees=SEES, purify="off")
    found = session(model).run(["purified", "reconstruction_error", "probabilities"], {"image": random_images})
    np.testing.assert_array_equal(found[0], random_images)
    np.testing.assert_array_equal(found[1], np.zeros(len(random_images), dtype=np.float32))
    np.testing.assert_allclose(found[2], np.exp(run(cut_stage(model, CLASSIFIER), random_images)[0]), rtol=1e-6)
    np.testing.assert_array_equal(run(cut_stage(model, PURIFIER), random_images)[0], random_images)


def test_a_function_that_does_not_return_images_of_the_same_shape_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"turns images \[1, 8, 8\] into \[1, 4, 8\]; expected the same shape"):
        trace_images(lambda x: x[:, :, ::2], DIGITS)
    with pytest.raises(RecipeError, match="purified does not depend on the image"):
        trace_images(torch.zeros_like, DIGITS)
