"""Numbers for channels: which of them are the same channel, and which must stay."""

from __future__ import annotations

import torch
from torch import Tensor

NOTHING = 0
"""The label of numbers that belong to no channel."""


class Labels:
    """Labels of channels, joined as a network couples them.

    A label is a whole number from 1 in a float64 tensor, as not every operator that rearranges takes integers.
    """

    def __init__(self) -> None:
        self._count = 0
        self._pairs: list[Tensor] = []  # int64 [n], one label in the upper half of the bits
        self._kept: list[tuple[Tensor, str]] = []

    def fresh(self, *shape: int) -> Tensor:
        """Labels that nothing else has, float64 of this shape."""
        size = torch.Size(shape).numel()
        labels = torch.arange(self._count + 1, self._count + size + 1, dtype=torch.float64).reshape(shape)
        self._count += size
        return labels

    def unify(self, first: Tensor, second: Tensor) -> None:
        """Note that these are the same channels, element by element; the shapes broadcast."""
        whole = (first + second).shape
        first, second = first.expand(whole).flatten(), second.expand(whole).flatten()
        differ = (first != second) & (first != NOTHING) & (second != NOTHING)
        pairs = (first[differ].long() << 32) | second[differ].long()
        if len(pairs) > 1:  # neighbours are often the pixels of one channel
            pairs = pairs[torch.cat([torch.ones(1, dtype=torch.bool), pairs[1:] != pairs[:-1]])]
        if len(pairs):
            self._pairs.append(torch.unique(pairs))

    def keep(self, labels: Tensor, reason: str) -> None:
        """Note that these channels cannot be removed."""
        labels = torch.unique(labels[labels != NOTHING]).long()
        if len(labels):
            self._kept.append((labels, reason))

    def components(self) -> tuple[Tensor, dict[int, str]]:
        """(int64 [labels + 1]: the smallest label that each is the same channel as, by such labels why they stay)."""
        root = torch.arange(self._count + 1)
        if self._pairs:
            pairs = torch.unique(torch.cat(self._pairs))
            first, second = pairs >> 32, pairs & 0xFFFFFFFF
            while True:
                low = torch.minimum(root[first], root[second])
                joined = root.scatter_reduce(0, torch.cat([root[first], root[second]]), torch.cat([low, low]), "amin")
                while not torch.equal(joined, joined[joined]):
                    joined = joined[joined]
                if torch.equal(joined, root):
                    break
                root = joined
        reasons: dict[int, str] = {}
        for labels, reason in self._kept:
            for label in torch.unique(root[labels]).tolist():
                reasons.setdefault(label, reason)
        return root, reasons


def varies(labels: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Whether there are several channels along dimensions: bool, these dimensions of size 1."""
    if not dims:
        return torch.zeros_like(labels, dtype=torch.bool)
    low = torch.where(labels == NOTHING, torch.inf, labels).amin(dims, keepdim=True)
    result: Tensor = labels.amax(dims, keepdim=True) > low
    return result
