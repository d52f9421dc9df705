"""Tiny networks of the kinds that people have, which several tests share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models

SHAPE = (3, 32, 24)
Make = Callable[[], nn.Module]


def after_convolution(*layers: nn.Module) -> nn.Module:
    """Six channels, the layers, and four logits of whatever they give."""
    body = nn.Sequential(nn.Conv2d(3, 6, 4, 2), *layers, nn.Flatten())
    with torch.no_grad():
        features = body.eval()(torch.zeros(1, *SHAPE)).shape[1]
    return body.append(nn.Linear(features, 4))


class Tokens(nn.Module):
    """A transformer over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        attended, _ = self.attention(tokens, tokens, tokens)
        logits: Tensor = self.head(self.encoder(attended)[:, 0])
        return logits


LAYERS: dict[str, Make] = {
    "Hardswish in place": lambda: after_convolution(nn.Hardswish(inplace=True)),
    "ReLU6 in place": lambda: after_convolution(nn.ReLU6(inplace=True)),
    "Hardsigmoid in place": lambda: after_convolution(nn.Hardsigmoid(inplace=True)),
    "SELU in place": lambda: after_convolution(nn.SELU(inplace=True)),
    "CELU and ELU": lambda: after_convolution(nn.CELU(0.5), nn.ELU(0.7)),
    "Softplus": lambda: after_convolution(nn.Softplus(), nn.Softplus(2.0)),
    "PReLU": lambda: after_convolution(nn.PReLU(), nn.PReLU(6)),
    "Mish": lambda: after_convolution(nn.Mish()),
    "RReLU": lambda: after_convolution(nn.RReLU()),
    "pools of uneven rests": lambda: after_convolution(
        nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2, divisor_override=3)
    ),
}
"""What our own trace writes."""

FALLBACKS: dict[str, Make] = {
    "padding": lambda: after_convolution(
        nn.ZeroPad2d(1), nn.ReflectionPad2d(2), nn.ReplicationPad2d(1), nn.CircularPad2d((1, 0, 2, 1))
    ),
    "resizing": lambda: after_convolution(
        nn.Upsample(scale_factor=2),
        nn.Upsample((17, 9), mode="bilinear"),
        nn.Upsample((12, 10), mode="bilinear", align_corners=True),
        nn.PixelUnshuffle(2),
        nn.ChannelShuffle(3),
        nn.PixelShuffle(2),
    ),
    "pools": lambda: after_convolution(
        nn.AvgPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d((5, 4)), nn.AdaptiveMaxPool2d((5, 2))
    ),
    "thresholds": lambda: after_convolution(
        nn.Softshrink(0.1), nn.Hardshrink(0.1), nn.Threshold(0.05, 0.2), nn.LogSigmoid(), nn.GLU(1)
    ),
    "normalisations": lambda: after_convolution(nn.LocalResponseNorm(3), nn.InstanceNorm2d(6, affine=True)),
    "attention": Tokens,
}
"""What torch's exporter writes."""

NETWORKS: dict[str, Make] = {
    "resnet18": lambda: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=4, width_mult=0.3),
}
LARGE_NETWORKS: dict[str, Make] = {
    "efficientnet_b0": lambda: models.efficientnet_b0(num_classes=4),
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(16, 24, 1), models.convnext.CNBlockConfig(24, None, 1)], num_classes=4
    ),
    "vit": lambda: models.VisionTransformer(24, 8, 2, 2, 16, 32, num_classes=4),
    "shufflenet": lambda: models.shufflenet_v2_x0_5(num_classes=4),
    "densenet": lambda: models.DenseNet(8, (2, 2), 8, num_classes=4),
    "swin": lambda: models.SwinTransformer([4, 4], 16, [1, 2], [2, 2], [4, 4], num_classes=4),
    "squeezenet": lambda: models.squeezenet1_1(num_classes=4),
}
"""Of torchvision, small."""


def shape_of(name: str) -> tuple[int, int, int]:
    """Of the images that a network takes."""
    return (3, 24, 24) if name == "vit" else SHAPE
