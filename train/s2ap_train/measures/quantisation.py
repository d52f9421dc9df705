"""An INT8 twin of a network: the arithmetic of 8-bit weights and activations, in float and differentiable.

The twin shows what quantisation does to accuracy, and attacks go through it: rounding passes gradients straight. INT8
is no defence; where it seems one, gradients are masked (Bernhard et al. 2019, arXiv 1909.12741).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.measures.predictions import batches_of, logits
from s2ap_train.models.folding import evaluation_view
from s2ap_train.models.modes import device_of, evaluation_mode

_WEIGHT_MAX = 127  # symmetric: -127 .. 127, so that 0 is 0
_ACTIVATION_MAX = 255
_SAMPLE = 1 << 20  # activations of one batch and layer that a percentile is taken of


class QuantisedLayer(nn.Module):
    """A convolution or linear layer on 8-bit inputs with 8-bit weights; the sum and the bias stay float.

    Input: per tensor, affine, levels 0 .. 255 over [low, high] (which holds 0). Weight: per output channel, symmetric,
    levels -127 .. 127. Inputs outside [low, high] saturate, and pass no gradient.

    Attributes:
        weight: What the 8-bit weight stands for, float32, shape of the layer's weight.
        weight_scale: Step of each output channel's weight, float32 [O].
        input_scale: Step of the input, float32 [].
        input_zero_point: Level of the input 0, int32 [].
    """

    weight_scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, low: float, high: float) -> None:
        super().__init__()
        device = layer.weight.device
        weight = layer.weight.detach()
        largest = weight.flatten(1).abs().amax(1)
        scale = torch.where(largest > 0, largest / _WEIGHT_MAX, torch.ones_like(largest))
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
        zero_points = torch.zeros(len(scale), dtype=torch.int32, device=device)
        quantised = torch.fake_quantize_per_channel_affine(weight, scale, zero_points, 0, -_WEIGHT_MAX, _WEIGHT_MAX)
        self.weight = nn.Parameter(quantised, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / _ACTIVATION_MAX, float(torch.finfo(torch.float32).tiny))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", torch.tensor(step, dtype=torch.float32, device=device))
        self.register_buffer("input_zero_point", torch.tensor(round(-low / step), dtype=torch.int32, device=device))
        self._layer = _shape_of(layer)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the layer to the quantised input."""
        rounded = torch.fake_quantize_per_tensor_affine(
            features, self.input_scale, self.input_zero_point, 0, _ACTIVATION_MAX
        )
        if self._layer is None:
            return linear(rounded, self.weight, self.bias)
        return conv2d(rounded, self.weight, self.bias, **self._layer)


@dataclass(frozen=True)
class QuantisationError:
    """How far the INT8 twin is from the network, on given images.

    Attributes:
        agreement: Share of images of the same predicted class.
        mean_logit_error: Mean |logit of the twin - logit|.
        largest_logit_error: Largest of them.
        signal_to_noise_db: 10 log10 of the logits' power over the power of the error; None if there is no error.
        weight_error: Per layer, ||w - w_int8|| / ||w|| (0 for a layer of zeros).
    """

    agreement: float
    mean_logit_error: float
    largest_logit_error: float
    signal_to_noise_db: float | None
    weight_error: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def int8_twin(model: nn.Module, calibration_images: Array, *, percentile: float = 100.0) -> nn.Module:
    """A copy of the network whose convolutions and linear layers compute in simulated INT8; in evaluation mode.

    Batch normalisation is folded into the convolution first where we know how (`evaluation_view`), and stays float
    elsewhere, as do additions, pooling and activation functions. Scheme as in Jacob et al. 2018 (arXiv 1712.05877) and
    Krishnamoorthi 2018 (arXiv 1806.08342). Weights that are 0 stay exactly 0.

    Args:
        model: Of `nn.Conv2d` and `nn.Linear` layers (subclasses are left alone); it is not changed.
        calibration_images: float32 [N, C, H, W] in [0, 1]; neither training of weights nor test images.
        percentile: 100 takes the smallest and largest activation as the range; 99.9, say, clips the outermost 0.1 % at
            either end, which saturate.

    Raises:
        RecipeError: If there are no images, the percentile is not in (50, 100], or no layer is of a kind that can be
            quantised.
    """
    if len(calibration_images) == 0 or not 50 < percentile <= 100:
        raise RecipeError(
            f"INT8 needs calibration images and a percentile above 50, at most 100; found {len(calibration_images)} "
            f"images and {percentile}"
        )
    with evaluation_mode(model):
        twin = copy.deepcopy(evaluation_view(model)).eval().requires_grad_(False)
    layers = {name: m for name, m in twin.named_modules(remove_duplicate=False) if type(m) in (nn.Conv2d, nn.Linear)}
    if not layers:
        raise RecipeError(f"{type(model).__name__} has no nn.Conv2d or nn.Linear layer; there is nothing to quantise")
    ranges = _activation_ranges(twin, list(layers.values()), calibration_images, percentile)
    quantised: dict[nn.Module, QuantisedLayer] = {}
    for name, layer in layers.items():
        if layer not in ranges:
            continue  # never called on the calibration images: it does not take part
        assert isinstance(layer, nn.Conv2d | nn.Linear)  # noqa: S101
        if layer not in quantised:
            quantised[layer] = QuantisedLayer(layer, *ranges[layer])
        twin = _replaced(twin, name, quantised[layer])
    return twin.eval()


def quantisation_error(model: nn.Module, twin: nn.Module, images: Array) -> QuantisationError:
    """Measure a twin of `int8_twin` against its network on images [N, C, H, W]."""
    exact, rounded = logits(model, images).double(), logits(twin, images).double()
    error = rounded - exact
    noise, signal = float(error.square().mean()), float(exact.square().mean())
    with evaluation_mode(model):
        originals = dict(evaluation_view(model).named_modules())
    weights: dict[str, float] = {}
    for name, layer in twin.named_modules():
        if isinstance(layer, QuantisedLayer):
            original = originals[name].get_parameter("weight").detach()
            weights[name] = float((layer.weight - original).norm() / original.norm().clamp_min(1e-12))
    return QuantisationError(
        agreement=float((exact.argmax(1) == rounded.argmax(1)).double().mean()),
        mean_logit_error=float(error.abs().mean()),
        largest_logit_error=float(error.abs().max()),
        signal_to_noise_db=10 * float(torch.tensor(signal / noise, dtype=torch.float64).log10()) if noise else None,
        weight_error=weights,
    )


def _activation_ranges(
    model: nn.Module, layers: list[nn.Module], images: Array, percentile: float
) -> dict[nn.Module, tuple[float, float]]:
    """Range of each layer's input over the images; of several batches, the widest."""
    ranges: dict[nn.Module, tuple[float, float]] = {}

    def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].detach().flatten().float()
        if percentile < 100:
            values = values[:: -(-len(values) // _SAMPLE)]
            low, high = torch.quantile(values, values.new_tensor([1 - percentile / 100, percentile / 100])).tolist()
        else:
            low, high = values.aminmax()
        before = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = (min(before[0], float(low)), max(before[1], float(high)))

    handles = [layer.register_forward_pre_hook(observe) for layer in dict.fromkeys(layers)]
    try:
        with torch.no_grad():
            for part in batches_of(torch.as_tensor(images).to(device_of(model)), 256):
                model(part)
    finally:
        for handle in handles:
            handle.remove()
    return ranges


def _replaced(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:  # the network is one layer
        return layer
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
    return model


def _shape_of(layer: nn.Conv2d | nn.Linear) -> dict[str, Any] | None:
    if isinstance(layer, nn.Linear):
        return None
    if layer.padding_mode != "zeros":
        raise RecipeError(f"INT8 convolutions pad with zeros, this one with {layer.padding_mode!r}; use 'zeros'")
    return {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
