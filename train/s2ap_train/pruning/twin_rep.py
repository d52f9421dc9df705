"""TwinRep: every weight trained as a product of two factors, pruned by the product, and merged again.

Li et al. 2023, "Learning Adversarially Robust Sparse Networks via Weight Reparameterization" (AAAI 2023). Weight decay
on both factors pulls products to zero, as an L1 penalty does: min over a b = w of (a^2 + b^2) / 2 is |w|. Checked
against the authors' program: the two products, the random second factor, the mask on the product, one-shot pruning of
all layers together after 10 of 100 epochs, and the L2 norm of filters as the score of channels. Ours: exact
counts, one cosine of the learning rate before and one after pruning, and the balanced start.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from s2ap_defend.errors import RecipeError
from s2ap_train.attacks.accuracy import Array
from s2ap_train.models.channel_groups import channel_groups, channel_sums, gate_factors
from s2ap_train.pruning.magnitude import Scope, check_magnitude, magnitude_masks
from s2ap_train.pruning.masks import Masks
from s2ap_train.pruning.pruned_model import PrunedModel
from s2ap_train.pruning.scores import prunable_weights
from s2ap_train.pruning.structures import StructureName
from s2ap_train.pruning.two_four import two_four_masks, two_four_weights
from s2ap_train.training import Run, TrainingConfig, train_classifier

Product = Literal["elementwise", "channel"]
Start = Literal["random", "balanced"]
_PUBLISHED_PRUNING_EPOCH = 10


@dataclass(frozen=True)
class TwinRep:
    """Hyper-parameters of `prune_twin_rep`.

    Attributes:
        sparsity: Fraction to remove: of weights, or of channels.
        product: "elementwise": w = a * b; "channel": w = P v with P [O, O], which mixes the filters v [O, ...].
        structure: What is pruned. Published pairs are elementwise with unstructured, and channel with channel.
        scope: As in `prune_magnitude`; published is "global", which for channels means the filters of all groups.
        minimum_kept: Weights or channels that every layer or group keeps.
        pruning_epoch: Epochs of `training` before pruning; None is the published 10 (of 100), or a third of a run that
            is shorter than 30.
        start: Of the factors. "balanced" begins at the given weights, trained or not; "random", as published, draws the
            second factor, so that the network begins anew with very small weights.
        training: Of the factors, on attacked images; its epochs are those before and after pruning together. Products
            of small factors move slowly: short runs need a larger learning rate than plain weights do.
    """

    sparsity: float = 0.8
    product: Product = "elementwise"
    structure: StructureName = "unstructured"
    scope: Scope = "global"
    minimum_kept: int = 1
    pruning_epoch: int | None = None
    start: Start = "balanced"
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(lr=0.4))
    method: Literal["twin-rep"] = field(default="twin-rep", kw_only=True)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained.

        Raises:
            RecipeError: With the values and what they may be.
        """
        check_magnitude(self.sparsity, self.scope, self.minimum_kept)
        if self.product not in ("elementwise", "channel") or self.start not in ("random", "balanced"):
            raise RecipeError(
                f"product is {self.product!r} and start {self.start!r}; choose elementwise or channel, and random or "
                "balanced"
            )
        if self.structure == "2:4" and self.sparsity != 0.5:
            raise RecipeError(f"2:4 removes exactly half of the weights; sparsity is {self.sparsity}, set it to 0.5")
        if self.structure == "channel" and self.scope == "lamp":
            raise RecipeError("lamp compares single weights, the structure is 'channel'; set scope to global or layer")
        if not 1 <= self.dense_epochs < self.training.epochs:
            raise RecipeError(
                f"pruning comes after {self.dense_epochs} of {self.training.epochs} epochs; it needs at least "
                "one before and one after"
            )

    @property
    def dense_epochs(self) -> int:
        """Epochs before pruning."""
        if self.pruning_epoch is not None:
            return self.pruning_epoch
        return max(1, min(_PUBLISHED_PRUNING_EPOCH, self.training.epochs // 3))


def prune_twin_rep(
    model: nn.Module,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: TwinRep,
    *,
    run: Run,
) -> PrunedModel:
    """Train the factors, prune their products once, train what is left, and merge; the given network is not changed.

    The result is a plain network of the same class. Scores are the products at pruning, or the channels' L2 norms.
    Records carry also pruned (0 or 1).

    Args:
        model: The network; its weights are used where `start` says so.
        images: Training images, float32 [N, C, H, W] in [0, 1].
        labels: Their labels, int64 [N].
        validation: Images and labels that choose the epoch; never the test set.
        config: Hyper-parameters.
        run: The seed is of the second factors, the order, the augmentation and the attack.

    Raises:
        RecipeError: As `train_classifier`, or if the network does not have the structure.
    """
    network = factorised(model, config.product, config.start, seed=run.seed)
    history: list[dict[str, float]] = []

    def phase(number: int, epochs: int, masks: Masks) -> tuple[int, str | None]:
        first = len(history)

        def extended(_: int, record: Mapping[str, float]) -> dict[str, float]:
            return {**record, "pruned": float(number)}

        here = run.phase(f"phase-{number}", seed=run.seed + number).extending(extended, first=first)
        settings = replace(config.training, epochs=epochs)
        training = train_classifier(network, images, labels, validation, settings, run=here, masks=masks)
        history.extend(extended(epoch, record) for epoch, record in enumerate(training.history))
        return first + training.best_epoch, training.collapse

    _, dense_collapse = phase(0, config.dense_epochs, {})
    searched = merged(network, model)
    scores, masks, gates = _cut(searched, tuple(images.shape[1:]), config)
    best_epoch, collapse = phase(1, config.training.epochs - config.dense_epochs, _masked(network, gates))
    result = merged(network, model)
    parameters = dict(result.named_parameters())
    with torch.no_grad():
        for name, gate in gates.items():
            parameters[name].masked_fill_(~gate, 0.0)
    collapse = collapse or dense_collapse
    return PrunedModel(result, masks, scores, tuple(history), best_epoch, collapse=collapse, searched=None)


class FactorProduct(nn.Module):
    """A parametrisation: weight = first * second * mask, or (second @ first) * mask along the output channels."""

    mask: Tensor

    def __init__(self, weight: Tensor, product: Product, start: Start, generator: torch.Generator) -> None:
        super().__init__()
        self._product, self._start, self._generator = product, start, generator
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The weight [O, ...] of factors [O, ...] and, elementwise, [O, ...] or, by channel, [O, O]."""
        if self._product == "elementwise":
            return first * second * self.mask
        return (second @ first.flatten(1)).reshape(first.shape) * self.mask

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors to start from."""
        if self._start == "balanced":
            if self._product == "elementwise":
                root = weight.abs().sqrt()
                return root * weight.sign(), root
            return weight.clone(), torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        shape = weight.shape if self._product == "elementwise" else (len(weight), len(weight))
        second = torch.empty(shape, dtype=weight.dtype)
        nn.init.kaiming_uniform_(second, a=math.sqrt(5), generator=self._generator)
        return weight.clone(), second.to(weight.device)


def factorised(model: nn.Module, product: Product, start: Start, *, seed: int) -> nn.Module:
    """A copy whose convolutions and linear layers compute their weights from two factors.

    Raises:
        RecipeError: If two layers share a weight, which their factors would not.
    """
    network = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    weights = prunable_weights(network)
    names = {id(weight): name for name, weight in weights.items()}
    for name, weight in network.named_parameters(remove_duplicate=False):
        if names.get(id(weight), name) != name:
            raise RecipeError(
                f"{name} and {names[id(weight)]} are one weight, TwinRep gives each layer its own; take another method"
            )
    for name, weight in weights.items():
        path, _, attribute = name.rpartition(".")
        factors = FactorProduct(weight, product, start, generator)
        parametrize.register_parametrization(network.get_submodule(path), attribute, factors)
    return network


def merged(network: nn.Module, model: nn.Module) -> nn.Module:
    """A copy of the plain `model`, in evaluation mode, with the weights and statistics of its factorised network."""
    plain = copy.deepcopy(model).to(next(network.parameters()).device).eval()
    values = network.state_dict()
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            layer_name, _, last = name.rpartition(".")
            tensor.copy_(values[name] if name in values else getattr(network.get_submodule(layer_name), last))
    return plain


def _masked(network: nn.Module, gates: Masks) -> dict[str, Tensor]:
    """Put the masks of products into the network; those of its plain parameters are handed back."""
    others = {}
    for name, gate in gates.items():
        path, _, attribute = name.rpartition(".")
        layer: Any = network.get_submodule(path)
        if parametrize.is_parametrized(layer, attribute):
            for product in layer.parametrizations[attribute]:
                product.mask.copy_(gate)
        else:
            others[name] = gate
    return others


def _cut(
    model: nn.Module, image_shape: tuple[int, ...], config: TwinRep
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Of a merged network: scores, masks by weight or group, and masks by parameter."""
    weights = {name: w.detach().clone() for name, w in prunable_weights(model).items()}
    if config.structure == "unstructured":
        masks = magnitude_masks(weights, sparsity=config.sparsity, scope=config.scope, minimum_kept=config.minimum_kept)
        return weights, masks, masks
    if config.structure == "2:4":
        weights = {name: weights[name] for name in two_four_weights(model)}
        masks = two_four_masks(weights)
        return weights, masks, masks
    groups = channel_groups(model, (image_shape[0], image_shape[1], image_shape[2]))
    squares = channel_sums(groups, {name: w.square() for name, w in weights.items()})
    norms = {name: s.sqrt() for name, s in squares.items()}
    least = max(1, config.minimum_kept)  # a group without a channel would cut the network in two
    masks = magnitude_masks(norms, sparsity=config.sparsity, scope=config.scope, minimum_kept=least)
    parameters = dict(model.named_parameters())
    factors = gate_factors(groups, masks, parameters)
    return norms, masks, {name: (f != 0).expand_as(parameters[name]).clone() for name, f in factors.items()}
