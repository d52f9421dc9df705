"""What a network answers with, and how that becomes logits that attacks and calibration can work on.

Attacks climb the cross-entropy of logits. On probabilities, or on logits a thousand times too large, its gradient
vanishes in float32, and a network seems robust that is not. Labels are the same before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from s2ap_defend.errors import RecipeError
from s2ap_train.models.modes import device_of, evaluation_mode

_IMAGES = 4
_ROUNDING = 1e-4  # of a sum of probabilities
_LARGEST_SPREAD = 100.0  # standard deviation of an image's logits; of a trained network it is a few units
_ENDINGS = (nn.Softmax, nn.Sigmoid)
_LARGEST_SHIFT = 1000.0  # mean of an image's logits, in such standard deviations
_THROUGH = {
    "Add",
    "Alias",
    "Cat",
    "Clamp",
    "ClampMax",
    "ClampMin",
    "Clone",
    "Div",
    "Expand",
    "Index",
    "Mean",
    "Mul",
    "Permute",
    "ReshapeAlias",
    "Select",
    "Slice",
    "Split",
    "Squeeze",
    "Stack",
    "T",
    "ToCopy",
    "Transpose",
    "Unbind",
    "UnsafeView",
    "Unsqueeze",
    "View",
}
"""Autograd's operators behind a sigmoid or softmax that may leave probabilities what they are, or their mean."""


@dataclass(frozen=True)
class Reading:
    """How outputs [N, K] of a network become logits; the defaults take them as they are.

    Attributes:
        log: They are probabilities, of which the logarithm is taken.
        odds: Each is a probability of its own, of a sigmoid, of which the logarithm of the odds is taken.
        centre: All outputs of an image share a large number, and their mean is subtracted.
        divide: What they are divided by, a power of two.
    """

    log: bool = False
    odds: bool = False
    centre: bool = False
    divide: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a factor that is none.

        Raises:
            RecipeError: If it is not above 0 and finite.
        """
        if not 0 < self.divide < math.inf:
            raise RecipeError(f"logits.divide is {self.divide}; it must be above 0 and finite")

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Reading:
        """From the table of an architecture.

        Raises:
            RecipeError: If it has other keys.
        """
        try:
            return cls(**table)
        except TypeError as error:
            raise RecipeError(f"logits is {dict(table)}; it has the keys log, odds, centre and divide") from error

    def __call__(self, outputs: Tensor) -> Tensor:
        """Logits [N, K]; the largest stays the largest."""
        if self.log:
            outputs = outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log()
        if self.odds:
            rounding = torch.finfo(outputs.dtype).eps
            outputs = outputs.clamp(torch.finfo(outputs.dtype).tiny, 1 - rounding)
            outputs = outputs.log() - (1 - outputs).log()
        if self.centre:
            outputs = outputs - outputs.mean(dim=1, keepdim=True)
        return outputs if self.divide == 1 else outputs / self.divide

    @property
    def changed(self) -> dict[str, Any]:
        """What is not as the defaults say, as JSON values."""
        usual = asdict(Reading())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for whoever starts a run."""
        said = {
            "log": "the network answers with probabilities: their logarithms are taken as logits",
            "odds": "the network answers with the probability of each class: the logarithms of their odds are logits",
            "centre": "the network's logits share a large number: their mean is subtracted",
            "divide": f"the network's logits are large: they are divided by {self.divide:g}",
        }
        return tuple(f"{said[name]}, labels stay as they are" for name in self.changed)


def logits_of(network: nn.Module, image_shape: tuple[int, int, int]) -> tuple[bool, Reading]:
    """Whether a last softmax or sigmoid was left out, and how the outputs of a network become logits, by a few images.

    An `nn.Softmax` or `nn.Sigmoid` module that the network ends with is replaced, in place, by nothing: its input are
    the exact logits, which the logarithm of probabilities that round to 0 or 1 is not. One that also runs elsewhere is
    left, as is a call of the function.
    """
    ran: dict[str, list[tuple[Tensor, object]]] = {}

    def noted(name: str) -> Callable[..., None]:
        return lambda _, inputs, output: ran.setdefault(name, []).append((inputs[0], output))

    named = [(name, module) for name, module in network.named_modules() if name and isinstance(module, _ENDINGS)]
    hooks = [module.register_forward_hook(noted(name)) for name, module in named]
    images = torch.rand(_IMAGES, *image_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    try:
        with torch.enable_grad(), evaluation_mode(network):
            outputs: Tensor = network(images.to(device_of(network)))
    finally:
        for hook in hooks:
            hook.remove()
    for name, calls in ran.items():
        if len(calls) == 1 and calls[0][1] is outputs:
            path, _, attribute = name.rpartition(".")
            network.get_submodule(path)._modules[attribute] = nn.Identity()
            return True, reading_of(calls[0][0])
    return False, reading_of(outputs)


def reading_of(outputs: Tensor) -> Reading:
    """How these outputs [N, K] become logits.

    Probabilities that sum to 1 are seen by their values, others where their gradients were recorded: a sigmoid or
    softmax made them, and what ran behind it at most reshaped, cut, clamped or averaged them.
    """
    made_by = _made_by(outputs)
    outputs = outputs.detach().double()
    if not bool(outputs.isfinite().all()):
        return Reading()
    probabilities = bool((outputs >= 0).all()) and bool((outputs <= 1 + _ROUNDING).all())
    sums_to_one = bool(((outputs.sum(dim=1) - 1).abs() < _ROUNDING).all())
    if probabilities and (sums_to_one or made_by == "Softmax"):
        return Reading(log=True)
    if probabilities and made_by == "Sigmoid":
        return Reading(odds=True)
    spread = float(outputs.std(dim=1, correction=0).mean())
    centre = float(outputs.mean(dim=1).abs().min()) > _LARGEST_SHIFT * max(spread, 1.0)
    return Reading(centre=centre, divide=2.0 ** round(math.log2(spread)) if spread > _LARGEST_SPREAD else 1.0)


def _made_by(outputs: Tensor) -> str:
    """Autograd's name of the one operator that all outputs come from, without its suffix; "" where there are several.

    What only moves, cuts, clamps or averages values is looked through.
    """
    found, seen, left = set(), set(), [outputs.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().partition("Backward")[0]
        if name in _THROUGH:
            left += [before for before, _ in node.next_functions]
        else:
            found.add(name)
    return found.pop() if len(found) == 1 else ""
