"""VGG16 with batch normalisation for small images: Simonyan and Zisserman 2015 (arXiv 1409.1556), one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from s2ap_train.models.classifier import ScaledClassifier

NAME = "vgg16_bn"


class VGG16(ScaledClassifier):
    """Thirteen convolutions 3x3 with batch normalisation, five 2x2 max-pools, global average pooling, a linear layer.

    A pool that would leave no pixel is left out, so images below 32 pixels work too.
    """

    name = NAME

    def build(self) -> None:
        """Make the layers."""
        from torchvision.models.vgg import make_layers  # takes longer than torch; most processes build no VGG

        layers = self._layers()
        channels = [layer for layer in layers if isinstance(layer, int)]
        self.features = make_layers(layers, batch_norm=True)
        self.features[0] = nn.Conv2d(self.in_channels, channels[0], 3, padding=1)  # torchvision's takes three channels
        self.classifier = nn.Linear(channels[-1], self.classes)

    def _layers(self) -> list[int | str]:
        """Configuration D of the paper, scaled, without the pools for which the image is too small."""
        from torchvision.models.vgg import cfgs

        side = min(self.image_shape[1:])
        layers: list[int | str] = []
        for layer in cfgs["D"]:
            if layer != "M":
                layers.append(self.scaled(layer))
                continue
            if side >= 2:
                layers.append(layer)
            side //= 2
        return layers

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] of images [N, C, H, W] in [0, 1]."""
        logits: Tensor = self.classifier(self.features(images * 2 - 1).mean(dim=(2, 3)))
        return logits
