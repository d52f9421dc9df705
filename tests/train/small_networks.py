"""Tiny networks of every kind that people bring, for images [N, 3, 16, 16] and 5 classes."""

from collections.abc import Callable, Mapping

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

IMAGE = (3, 16, 16)
CLASSES = 5


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def convolutions(*between: nn.Module, channels: int = 8) -> nn.Module:
    """A convolution, what is between, another convolution and the answer."""
    last = nn.Conv2d(channels, 8, 1)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), *between, nn.ReLU(), last, nn.ReLU(), *head(8))


class Excited(nn.Module):
    """Squeeze and excitation around a depthwise convolution, with a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.answer = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.norm(self.stem(x)))
        y = self.depthwise(x)
        y = y * nn.functional.hardsigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.answer(x + y)


class Shared(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.once, self.again = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.again.weight = self.once.weight
        self.answer = nn.Sequential(*head(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.once(torch.relu(self.stem(x))))
        return self.answer(torch.relu(self.again(x)))


class Bare(nn.Module):
    """Weights that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(torch.randn(768, 8) / 28), nn.Parameter(torch.randn(8, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x.flatten(1) @ self.first) @ self.last


def residual(block: type[BasicBlock | Bottleneck], **kind: int) -> nn.Module:
    """The first half of a residual network."""
    network = ResNet(block, [1, 1, 1, 1], num_classes=CLASSES, **kind)
    network.layer3 = network.layer4 = nn.Identity()
    network.fc = nn.Linear(128 * block.expansion, CLASSES)
    return network


def mobilenet() -> nn.Module:
    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1.0),
        InvertedResidualConfig(16, 5, 32, 24, True, "HS", 1, 1, 1.0),
    ]
    return MobileNetV3(blocks, last_channel=32, num_classes=CLASSES, dropout=0.0)


def efficientnet() -> nn.Module:
    blocks = [MBConvConfig(1, 3, 1, 32, 16, 1, 1.0, 1.0), MBConvConfig(4, 3, 2, 16, 24, 2, 1.0, 1.0)]
    return EfficientNet(blocks, dropout=0.0, num_classes=CLASSES, last_channel=32)


def vision_transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 2, 2, 16, 32, num_classes=CLASSES)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "depthwise, squeeze and excitation": Excited,
    "unequal groups": lambda: convolutions(nn.Conv2d(8, 16, 1, groups=4), nn.Conv2d(16, 16, 1, groups=2), channels=16),
    "transposed": lambda: convolutions(nn.ConvTranspose2d(8, 8, 2, 2)),
    "shared weights": Shared,
    "batch normalisation without statistics": lambda: convolutions(nn.BatchNorm2d(8, track_running_stats=False)),
    "batch normalisation without scale": lambda: convolutions(
        nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 8, 3, padding=1)
    ),
    "group normalisation": lambda: convolutions(nn.GroupNorm(4, 8)),
    "layer normalisation": lambda: convolutions(nn.LayerNorm([8, 8, 8]), nn.Conv2d(8, 8, 1)),
    "no normalisation": lambda: convolutions(nn.Conv2d(8, 8, 3, padding=1)),
    "flattened": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    ),
    "resnet18": lambda: residual(BasicBlock),
    "resnext": lambda: residual(Bottleneck, groups=8, width_per_group=4),
    "mobilenet_v3": mobilenet,
    "efficientnet": efficientnet,
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES),
    "convnext": lambda: ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 1)], 0.0, num_classes=CLASSES),
    "vision transformer": vision_transformer,
}
