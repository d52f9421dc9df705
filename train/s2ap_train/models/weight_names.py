"""The names of weights that others saved: what wrappers put before them, and a normalisation next to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

__all__ = ["Matched", "matched"]

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the channels, of pixels in [0, 1]."""

_MEANS = frozenset({"mean", "mu", "_mean", "new_mean"})
_STDS = frozenset({"std", "sigma", "_std", "new_std"})
_MOST_CHANNELS = 4


@dataclass(frozen=True)
class Matched:
    """The tensors of a file under the names of a network.

    Attributes:
        tensors: By name.
        pixels: The normalisation that the file holds and the network does not; None: there is none.
        notes: What was done, one sentence each.
    """

    tensors: dict[str, Tensor]
    pixels: Pixels | None
    notes: tuple[str, ...]


def matched(tensors: Mapping[str, Tensor], network: nn.Module) -> Matched:
    """Find the names of a network among those of a file.

    A prefix that all names share is taken off where the network has it not, such as the 'module.' of a parallel
    training. So is that of a network behind a normalisation, as in `nn.Sequential(normalise, network)`, whose mean and
    deviation are told apart. A normalisation that only the network holds keeps the network's numbers.

    Args:
        tensors: Of the file.
        network: What they are for; it is not changed.
    """
    expected = network.state_dict()
    found, notes = _without_prefixes(tensors, expected)
    pixels = _pixels(
        {name: value for name, value in found.items() if name not in expected and _is_constant(name, value)}
    )
    if pixels is not None:
        found = {name: value for name, value in found.items() if name in expected or not _is_constant(name, value)}
    buffers = dict(network.named_buffers())
    own = [name for name in expected if name not in found and name in buffers and _is_constant(name, expected[name])]
    if own and found.keys() & expected.keys():
        notes.append(f"the file has no {', '.join(own)}: the network's own are used")
        found |= {name: expected[name] for name in own}
    return Matched(found, pixels, tuple(notes))


def _without_prefixes(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors less what stands before all of their names, as far as it helps."""
    found, notes = dict(tensors), list[str]()
    while not found.keys() & expected.keys():
        weights = [name for name, value in found.items() if not _is_constant(name, value)]
        parts = {name.partition(".")[::2] for name in weights}
        if len({first for first, _ in parts}) != 1 or not all(rest for _, rest in parts):
            return dict(tensors), []  # they are of another network
        prefix = f"{next(iter(parts))[0]}."
        found = {name.removeprefix(prefix): value for name, value in found.items()}
        notes.append(f"the prefix {prefix!r} was taken off all names")
    return found, notes


def _is_constant(name: str, value: Tensor) -> bool:
    """Whether this is a mean or deviation of the channels of images."""
    return name.rpartition(".")[2] in _MEANS | _STDS and value.is_floating_point() and value.numel() <= _MOST_CHANNELS


def _pixels(constants: Mapping[str, Tensor]) -> Pixels | None:
    """The mean and the deviation, if each is there once or always the same."""

    def of(names: frozenset[str]) -> set[tuple[float, ...]]:
        return {tuple(v.flatten().tolist()) for name, v in constants.items() if name.rpartition(".")[2] in names}

    means, stds = of(_MEANS), of(_STDS)
    return (means.pop(), stds.pop()) if len(means) == len(stds) == 1 else None
