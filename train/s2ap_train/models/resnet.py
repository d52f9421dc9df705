"""ResNet18 for small images: He et al. 2016 (arXiv 1512.03385), with the stem that is usual on CIFAR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from s2ap_train.models.classifier import ScaledClassifier, shortcut

NAME = "resnet18"
STAGES = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2


class ResNet18(ScaledClassifier):
    """Four stages of two basic blocks, global average pooling, one linear layer.

    The stem is a 3x3 convolution of stride 1 without max-pool; stages two to four halve the image. Any size works.
    """

    name = NAME

    def build(self) -> None:
        """Make the layers."""
        stages = [self.scaled(channels) for channels in STAGES]
        self.stem = nn.Conv2d(self.in_channels, stages[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(stages[0])
        inputs, strides = [stages[0], *stages[:-1]], [1, 2, 2, 2]
        self.stages = nn.Sequential(*(_stage(*sizes) for sizes in zip(inputs, stages, strides, strict=True)))
        self.classifier = nn.Linear(stages[-1], self.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        features = torch.relu(self.norm(self.stem(images * 2 - 1)))
        logits: Tensor = self.classifier(self.stages(features).mean(dim=(2, 3)))
        return logits


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock  # takes longer than torch; most processes build no ResNet

    changed = stride != 1 or inputs != outputs
    bypass = nn.Sequential(*shortcut(inputs, outputs, stride), nn.BatchNorm2d(outputs)) if changed else None
    rest = (BasicBlock(outputs, outputs) for _ in range(BLOCKS_PER_STAGE - 1))
    return nn.Sequential(BasicBlock(inputs, outputs, stride, bypass), *rest)
