"""Mutants of the plain network: the four operators of model mutation testing, folded into plain weights.

Wang et al. 2019 (ICSE, "Adversarial sample detection for deep neural network through model mutation testing"), with
the operators of Ma et al. 2018 (DeepMutation, arXiv 1805.05206). The baseline family: mutants are not trained.

A neuron is an output channel of a convolution or an output of a linear layer, together with its bias and the batch
normalisation that alone reads it. The classes that the network answers are not mutated as neurons: they have no
activation function, and a network that swaps or negates classes is not one of at least 90 % of the accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Seeds
from s2ap_train.attacks.accuracy import Array, accuracy
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily
from s2ap_train.models import Classifier
from s2ap_train.models.folding import normalised_layers
from s2ap_train.models.modes import evaluation_mode
from s2ap_train.pruning.scores import prunable_weights, weight_counts
from s2ap_train.training import Run, TrainingData

Operator = Literal["gf", "ws", "ns", "nai"]
"""Gaussian fuzzing, weight shuffling, neuron switch, neuron activation inverse."""


@dataclass(frozen=True)
class Mutation:
    """Hyper-parameters of `mutant`.

    Attributes:
        operators: Taken in turn by the members of a family.
        rate: Share of the weights ("gf") or of the hidden neurons (the others) that is mutated; at least one weight or
            neuron, or two that switch.
        least_accuracy: Of the plain network's validation accuracy: the fraction that a mutant must keep.
        draws: Mutants that are tried before it is given up.
    """

    operators: tuple[Operator, ...] = get_args(Operator)
    rate: float = 0.007
    least_accuracy: float = 0.9
    draws: int = 100

    def __post_init__(self) -> None:
        """Refuse what cannot be mutated.

        Raises:
            RecipeError: With the value and what it may be.
        """
        unknown = [operator for operator in self.operators if operator not in get_args(Operator)]
        if unknown or not self.operators:
            raise RecipeError(
                f"operators are {list(self.operators)}; give at least one of {', '.join(get_args(Operator))}"
            )
        if not 0 < self.rate <= 1 or not 0 <= self.least_accuracy <= 1 or self.draws < 1:
            raise RecipeError(
                f"rate is {self.rate}, least_accuracy {self.least_accuracy} and draws {self.draws}; rate lies above 0 "
                "and up to 1, least_accuracy between 0 and 1, and draws start at 1"
            )


@dataclass(frozen=True)
class Mutant:
    """A mutant that was kept: in evaluation mode, its validation accuracy, and how many were drawn for it."""

    model: Classifier
    accuracy: float
    draws: int


def mutant(
    base: Classifier, validation: tuple[Array, Array], operator: Operator, config: Mutation, *, seed: int
) -> Mutant:
    """Mutate the network until a mutant keeps enough of its accuracy; the network is not changed.

    Args:
        base: The plain network.
        validation: Images and labels that decide.
        operator: What is mutated.
        config: How much, and what must be kept.
        seed: Of all draws.

    Raises:
        RecipeError: If none of the draws keeps enough, or the network has no hidden neurons.
    """
    generator = torch.Generator().manual_seed(seed)
    whole = accuracy(base, *validation)
    best = 0.0
    for draw in range(1, config.draws + 1):
        model = mutate(base, operator, config.rate, generator)
        kept = accuracy(model, *validation)
        if kept >= config.least_accuracy * whole:
            return Mutant(model, kept, draw)
        best = max(best, kept)
    raise RecipeError(
        f"none of {config.draws} mutants by {operator} at rate {config.rate:g} kept {config.least_accuracy:.0%} of the "
        f"plain network's accuracy {whole:.1%}, the best had {best:.1%}; lower rate or raise draws"
    )


def mutate(base: Classifier, operator: Operator, rate: float, generator: torch.Generator) -> Classifier:
    """One mutant, in evaluation mode, good or not.

    gf: each chosen weight w of all convolutions and linear layers is drawn anew from N(w, s^2), s the standard
    deviation of its layer's weights. ws: the weights of each chosen neuron are permuted. ns: pairs of neurons of one
    layer change places, with bias and normalisation, and so their influence on what follows. nai: each chosen neuron's
    value before the activation function is negated.

    Raises:
        RecipeError: If the network has no hidden neurons.
    """
    model = copy.deepcopy(base).eval()
    with torch.no_grad():
        _OPERATORS[operator](model, rate, generator)
    return model


class MutationFamily(MemberFamily):
    """Each member is a mutant that keeps most of the plain network's accuracy; operators take turns.

    Attributes:
        settings: What is mutated.
    """

    family: Literal["mutation"]
    settings: Mutation = Mutation()

    starts_from_base: ClassVar[bool] = True

    def epochs(self, number: int) -> int:  # noqa: ARG002
        """None: mutants are not trained."""
        return 0

    def decides(self, number: int) -> object:
        """Operator and settings, whatever other operators take turns."""
        return self.family, self._operator(number), self.settings.rate, self.settings.least_accuracy

    def train(
        self,
        number: int,
        data: TrainingData,
        base: Base,
        *,
        run: Run,
    ) -> Fitted:
        """Draw a mutant. Arguments and errors as in `MemberFamily.train`."""
        network, operator = run.place(copy.deepcopy(base.network())), self._operator(number)
        made = mutant(network, data.validation, operator, self.settings, seed=run.seed)
        return Fitted(
            model=made.model,
            method=f"mutation-{operator}",
            seeds=Seeds(initialisation=base.seed, mask=run.seed, order=base.seed),
            adversarially_trained=False,
            dense_weights=weight_counts(network)[1],
            details={"draws": made.draws},
        )

    def _operator(self, number: int) -> Operator:
        return self.settings.operators[number % len(self.settings.operators)]


@dataclass(frozen=True)
class _Layer:
    """A hidden layer: its weight [neurons, ...], and what else has one row a neuron, by what it is."""

    weight: Tensor
    others: Mapping[str, Tensor]

    def each(self) -> Iterator[Tensor]:
        yield self.weight
        yield from self.others.values()


def _hidden_layers(model: Classifier) -> list[_Layer]:
    """The layers that run for an image, but for the last one, which answers; in the order in which they run."""
    norms = dict(normalised_layers(model))
    layers = []
    for name in _order(model)[:-1]:
        layer: Any = model.get_submodule(name)
        norm: Any = model.get_submodule(norms[name]) if name in norms else None
        found = {
            "bias": layer.bias,
            "scale": getattr(norm, "weight", None),
            "shift": getattr(norm, "bias", None),
            "mean": getattr(norm, "running_mean", None),
            "variance": getattr(norm, "running_var", None),
        }
        layers.append(_Layer(layer.weight, {what: rows for what, rows in found.items() if rows is not None}))
    if not layers:
        raise RecipeError(f"{type(model).__name__} has no hidden neurons to mutate; set operators to gf alone")
    return layers


def _order(model: Classifier) -> list[str]:
    """Names of the convolutions and linear layers with a row a neuron, in the order in which they first run."""
    paths = [name.removesuffix(".weight") for name in prunable_weights(model) if name.endswith(".weight")]
    layers = {model.get_submodule(path): path for path in paths}
    names = {layer: path for layer, path in layers.items() if not isinstance(layer, _ConvTransposeNd)}
    ran: dict[nn.Module, None] = {}
    hooks = [layer.register_forward_pre_hook(lambda layer, _: ran.setdefault(layer)) for layer in names]
    try:
        with torch.no_grad(), evaluation_mode(model):
            model(next(model.parameters()).new_full((1, *model.image_shape), 0.5))
    finally:
        for hook in hooks:
            hook.remove()
    return [names[layer] for layer in ran]


def _share(rate: float, total: int) -> int:
    return max(1, round(rate * total))


def _chosen_neurons(
    layers: list[_Layer], rate: float, generator: torch.Generator
) -> Iterator[tuple[_Layer, list[int]]]:
    """The share of all neurons, drawn without replacement: layers and rows."""
    sizes = [len(layer.weight) for layer in layers]
    chosen = torch.randperm(sum(sizes), generator=generator)[: _share(rate, sum(sizes))]
    first = 0
    for layer, size in zip(layers, sizes, strict=True):
        yield layer, sorted(int(row) - first for row in chosen if first <= row < first + size)
        first += size


def _gaussian_fuzzing(model: nn.Module, rate: float, generator: torch.Generator) -> None:
    weights = list(prunable_weights(model).values())
    total = sum(weight.numel() for weight in weights)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.randperm(total, generator=generator)[: _share(rate, total)]] = True
    noise = torch.randn(total, generator=generator)
    sizes = [weight.numel() for weight in weights]
    for weight, here, drawn in zip(weights, torch.split(chosen, sizes), torch.split(noise, sizes), strict=True):
        moved = weight + weight.std(correction=0) * drawn.reshape(weight.shape).to(weight)
        weight.copy_(torch.where(here.reshape(weight.shape).to(weight.device), moved, weight))


def _weight_shuffling(model: Classifier, rate: float, generator: torch.Generator) -> None:
    for layer, rows in _chosen_neurons(_hidden_layers(model), rate, generator):
        for row in rows:
            weights = layer.weight[row]
            order = torch.randperm(weights.numel(), generator=generator)
            layer.weight[row] = weights.flatten()[order].reshape(weights.shape)


def _neuron_switch(model: Classifier, rate: float, generator: torch.Generator) -> None:
    """Half as many pairs as neurons are to be mutated, each within a layer, no neuron in two of them."""
    layers = _hidden_layers(model)
    candidates = []
    for layer in layers:
        order = torch.randperm(len(layer.weight), generator=generator).tolist()
        candidates += [(layer, *pair) for pair in zip(order[::2], order[1::2], strict=False)]
    if not candidates:
        raise RecipeError(f"every layer of the {type(model).__name__} has one neuron, none can switch; leave out ns")
    pairs = min(len(candidates), _share(rate / 2, sum(len(layer.weight) for layer in layers)))
    for place in torch.randperm(len(candidates), generator=generator)[:pairs].tolist():
        layer, first, second = candidates[place]
        for rows in layer.each():
            rows[[first, second]] = rows[[second, first]]


def _neuron_activation_inverse(model: Classifier, rate: float, generator: torch.Generator) -> None:
    """Negate weights and bias, and running mean and shift of the normalisation: then all that it hands on is negated.

    scale * (-(w x + b) - (-mean)) / std - shift = -(scale * (w x + b - mean) / std + shift).
    """
    for layer, rows in _chosen_neurons(_hidden_layers(model), rate, generator):
        for values in (layer.weight, *(layer.others.get(what) for what in ("bias", "mean", "shift"))):
            if values is not None:
                values[rows] = -values[rows]


_OPERATORS: Mapping[Operator, Callable[[Classifier, float, torch.Generator], None]] = {
    "gf": _gaussian_fuzzing,
    "ws": _weight_shuffling,
    "ns": _neuron_switch,
    "nai": _neuron_activation_inverse,
}
