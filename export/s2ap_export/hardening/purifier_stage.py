"""The purifier as a stage, compared with what it is made from: of a trained score model, or before it is trained."""

from __future__ import annotations

import numpy as np
import torch
from onnx import ModelProto

from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.errors import RecipeError
from s2ap_defend.stages import PURIFIER
from s2ap_defend.types import Float32
from s2ap_export.hardening.parity import PIXEL, check_stage
from s2ap_export.hardening.precision import is_half, to_half
from s2ap_export.hardening.unfit import check_fit
from s2ap_export.tracing.trace import frozen, trace_purifier
from s2ap_train.calibration import OnWeakness, Weakness, refuse
from s2ap_train.onnx_graphs import torch_stage
from s2ap_train.purifier import UNet, hadamard_bank, purify
from s2ap_train.purifier.sizes import pass_flops
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import settings_of

__all__ = ["check_purifier", "exported_purifier"]

_FEW = 2  # images before a training: a purifier costs much, and what is wrong with its structure shows in each


def exported_purifier(recipe: Recipe, score_model: UNet, images: Float32, weak: OnWeakness = refuse) -> ModelProto:
    """Export the purifier and compare it with what it was made from.

    Args:
        recipe: Its purifier, and the precision that it is exported in.
        score_model: Its score model.
        images: Those that it is compared on, float32 [N, C, H, W].
        weak: Called if float16 is too coarse; then it is in float32.

    Raises:
        RecipeError: If it differs from its network, or `weak` does.
    """
    channels, height, width = images.shape[1:]
    shape, network = (channels, height, width), frozen(score_model)
    bank = hadamard_bank(recipe.purifier.bank_size, shape, recipe.purifier.bank_seed)
    single = trace_purifier(network, bank, recipe.purifier, shape, scope=PURIFIER)
    check_fit(single, wanted=recipe.export.tensorrt)

    def checked(stage: ModelProto) -> ModelProto:
        check_stage(PURIFIER, stage, lambda x: purify(network, x, bank, recipe.purifier), images)
        return stage

    if recipe.export.precision.purifier == "float16":
        try:
            return checked(to_half(single))
        except RecipeError as error:
            weak(Weakness.of(error, "purifier", "the purifier is in float32"))
    return checked(single)


def check_purifier(recipe: Recipe, images: Float32) -> str:
    """Refuse a purifier that cannot be shipped or attacked, by its score model before it is trained.

    Args:
        recipe: Its score model and purifier.
        images: A few images of its data, float32 [N, C, H, W] in [0, 1].

    Returns:
        What it costs, for people.

    Raises:
        RecipeError: With what it lacks.
    """
    if recipe.purifier.off:
        return "nothing is purified"
    channels, height, width = images.shape[1:]
    network = UNet(channels, *recipe.score_model.architecture((channels, height, width)), seed=recipe.seed).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if bool((parameter == parameter.flatten()[:1]).all()):  # zeros of a last layer hide what others compute
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    coarse: list[Weakness] = []
    few = images[:_FEW]
    stage = exported_purifier(recipe, network, few, coarse.append)
    if not is_half(stage):  # one in half was compared with its twin when it was exported
        _check_twin(stage, few)
    passes = settings_of(recipe.purifier).passes
    cost = f"{passes} passes of {pass_flops(network, (channels, height, width)) / 1e6:.3g} MFLOPs"
    return cost + "".join(f", {one.instead} if it is as coarse when it is trained" for one in coarse)


def _check_twin(stage: ModelProto, images: Float32) -> None:
    """Refuse a stage that the red team's twin rebuilds with other values, or without a gradient."""
    x = torch.from_numpy(np.ascontiguousarray(images)).requires_grad_()
    purified, _ = torch_stage(stage)(x)
    engine = OnnxRuntimeEngine(stage.SerializeToString(), device="cpu")
    (served,) = engine.run({"image": images}, ["purified"])
    difference = float(np.abs(purified.detach().numpy() - served).max())
    (gradient,) = torch.autograd.grad(purified.square().sum(), x)
    if not difference <= PIXEL or not bool(gradient.isfinite().all()):
        raise RecipeError(
            f"rebuilt from its ONNX, purified pixels differ by {difference:.2g}, expected at most {PIXEL:g}, with a "
            "finite gradient; this is a fault of the export, please report it with the recipe"
        )
