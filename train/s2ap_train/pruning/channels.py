"""Structured pruning: output channels taken out of a network, or only gated, for comparison."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from s2ap_train.models.small_cnn import SmallCNN

Channels = Sequence[Tensor]
"""Per block, first to last: indices of the channels it keeps, int64, ascending."""


def remove_channels(model: SmallCNN, kept: Channels) -> SmallCNN:
    """A smaller network with the kept channels' weights AND batch-normalisation statistics, in evaluation mode.

    Its logits equal those of `gate_channels`, up to rounding; the network itself is not changed.

    Raises:
        ValueError: If `kept` does not name channels of every block.
    """
    _check(model, kept)
    architecture = {**model.architecture(), "widths": [len(channels) for channels in kept]}
    architecture.pop("name")
    smaller = SmallCNN(**architecture).to(next(model.parameters()).device).eval()
    inputs = torch.arange(model.in_channels)
    with torch.no_grad():
        for target, source, outputs in zip(smaller.each_block(), model.each_block(), kept, strict=True):
            target.convolution.weight.copy_(source.convolution.weight[outputs][:, inputs])
            for name, tensor in source.norm.state_dict().items():
                target.norm.state_dict()[name].copy_(tensor[outputs] if tensor.dim() else tensor)
            inputs = outputs
        columns = model.classifier.weight.reshape(model.classes, model.widths[-1], -1)  # [K, channels, pixels]
        smaller.classifier.weight.copy_(columns[:, inputs].flatten(1))
        smaller.classifier.bias.copy_(model.classifier.bias)
    return smaller


def gate_channels(model: SmallCNN, kept: Channels) -> SmallCNN:
    """A copy of full size whose other channels are 0 AFTER batch normalisation.

    A convolution's zero output would still give beta - gamma * mean / std after it: gating before is not removal.
    """
    _check(model, kept)
    gated = copy.deepcopy(model).eval()
    with torch.no_grad():
        for block, channels in zip(gated.each_block(), kept, strict=True):
            gate = torch.zeros_like(block.norm.weight)
            gate[channels] = 1
            block.norm.weight.mul_(gate)
            block.norm.bias.mul_(gate)
    return gated


def fresh_network(model: SmallCNN, kept: Channels, *, seed: int) -> SmallCNN:
    """A network of the pruned architecture with new weights: it shares no direction with the one it was cut from."""
    _check(model, kept)
    architecture = {**model.architecture(), "widths": [len(channels) for channels in kept]}
    architecture.pop("name")
    return SmallCNN(**architecture, seed=seed).to(next(model.parameters()).device)


def _check(model: SmallCNN, kept: Channels) -> None:
    if len(kept) != len(model.widths):
        raise ValueError(f"kept channels are given for {len(kept)} blocks, the network has {len(model.widths)}")
    for number, (channels, width) in enumerate(zip(kept, model.widths, strict=True)):
        chosen = set(channels.tolist())
        if not chosen or len(chosen) < len(channels) or not chosen <= set(range(width)):
            raise ValueError(
                f"block {number} keeps channels {channels.tolist()}; expected some of 0 to {width - 1}, each once"
            )
