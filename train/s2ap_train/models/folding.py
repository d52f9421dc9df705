"""Folding: batch normalisation moved into the convolution before it, for export."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from s2ap_train.models.small_cnn import SmallCNN


class AffinePixels(nn.Module):
    """Pixels in [0, 1] to [-1, 1]."""

    def forward(self, images: Tensor) -> Tensor:
        """Scale and shift."""
        return images * 2 - 1


def evaluation_view(model: nn.Module) -> nn.Module:
    """A network with the present evaluation logits of the model, faster to attack where we know how; else the model.

    Rounding differs from the model's own. It must be in evaluation mode, or be put there.
    """
    return fold_batch_norm(model) if isinstance(model, SmallCNN) else model


def fold_batch_norm(model: SmallCNN) -> nn.Sequential:
    """An evaluation copy of the network without batch normalisation: its scale and shift go into the convolutions.

    The copy computes the same logits as `model.eval()` up to float32 rounding. Zero weights stay exactly zero, and the
    copy shares no tensor with the model.
    """
    layers: list[nn.Module] = [AffinePixels()]
    for block in model.each_block():
        layers += [_fold(block.convolution, block.norm), nn.ReLU()]
        if isinstance(block.pool, nn.MaxPool2d):
            layers.append(nn.MaxPool2d(2))
    folded = nn.Sequential(*layers, nn.Flatten(), copy.deepcopy(model.classifier)).to(memory_format=torch.channels_last)
    return folded.eval().requires_grad_(False)


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch normalisation without running statistics cannot be folded")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()  # [O]
    folded = copy.deepcopy(convolution)
    folded.weight = nn.Parameter((convolution.weight.double() * scale[:, None, None, None]).float().detach())
    folded.bias = nn.Parameter((norm.bias.double() - scale * norm.running_mean.double()).float().detach())
    return folded
