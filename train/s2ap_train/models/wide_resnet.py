"""WideResNet-28-4: Zagoruyko and Komodakis 2016 (arXiv 1605.07146), pre-activation blocks, no dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2ap_train.models.classifier import ScaledClassifier, shortcut

NAME = "wide_resnet_28_4"
STEM = 16
STAGES = (64, 128, 256)  # 16, 32, 64 times the widening factor 4
BLOCKS_PER_STAGE = 4  # (28 - 4) / 6


class PreActivationBlock(nn.Module):
    """Batch normalisation and ReLU before each of two convolutions: [N, I, H, W] -> [N, O, H/stride, W/stride].

    Where the shape changes, the shortcut is a 1x1 convolution of the normalised input; else it is the input itself.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.convolution1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.convolution2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = shortcut(inputs, outputs, stride) if changes else None

    def forward(self, stream: Tensor) -> Tensor:
        """Add the block's part to the stream."""
        active = torch.relu(self.norm1(stream))
        kept = stream if self.shortcut is None else self.shortcut(active)
        added: Tensor = self.convolution2(torch.relu(self.norm2(self.convolution1(active)))) + kept
        return added


class WideResNet(ScaledClassifier):
    """Three stages of four pre-activation blocks, global average pooling, one linear layer.

    Stages two and three halve the image; any size works.
    """

    name = NAME

    def build(self) -> None:
        """Make the layers."""
        stem, *stages = (self.scaled(channels) for channels in (STEM, *STAGES))
        self.stem = nn.Conv2d(self.in_channels, stem, 3, padding=1, bias=False)
        inputs, strides = [stem, *stages[:-1]], [1, 2, 2]
        self.stages = nn.Sequential(*(_stage(*sizes) for sizes in zip(inputs, stages, strides, strict=True)))
        self.norm = nn.BatchNorm2d(stages[-1])
        self.classifier = nn.Linear(stages[-1], self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        features = torch.relu(self.norm(self.stages(self.stem(images * 2 - 1))))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    rest = (PreActivationBlock(outputs, outputs, stride=1) for _ in range(BLOCKS_PER_STAGE - 1))
    return nn.Sequential(PreActivationBlock(inputs, outputs, stride=stride), *rest)
