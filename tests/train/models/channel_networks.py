"""Networks whose channels are grouped, with normalisation far from its start, and what is kept of their channels."""

import torch
from torch import Tensor, nn

from s2ap_train.models import VGG16, ResNet18, SmallCNN, WideResNet

IMAGE = (3, 8, 8)


def with_statistics(model: nn.Module) -> nn.Module:
    """Normalisation far from its start, with a shift that a gate before the normalisation would let through."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, low + 1, generator=generator)
    return model.eval()


def half(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    kept = {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups}
    for group in groups:
        kept[group.name][torch.randperm(group.size, generator=generator)[: (group.size + 1) // 2]] = True
    return kept


def images(shape, count=4):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


OURS = {
    "small_cnn": lambda: SmallCNN(3, 7, (8, 12, 10), 8, pool_after=(0, 2), seed=1),
    "resnet18": lambda: ResNet18(3, 7, 16, width=0.125, seed=1),
    "vgg16_bn": lambda: VGG16(3, 7, 16, width=0.125, seed=1),
    "wide_resnet_28_4": lambda: WideResNet(3, 7, 16, width=0.25, seed=1),
}


class Concatenated(nn.Module):
    """As in DenseNet: normalisation after a concatenation, features that are read twice, no normalisation before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.third = nn.Conv2d(14, 4, 1)
        self.last_norm = nn.BatchNorm2d(18)
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        both = torch.cat([a, self.second(torch.relu(a))], dim=1)
        every = torch.cat([both, self.third(torch.relu(self.norm(both)))], dim=1)
        return self.head(torch.relu(self.last_norm(every)).mean(dim=(2, 3)))


class AddedToConcatenated(nn.Module):
    """One convolution is coupled with two that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.left, self.right = nn.Conv2d(3, 14, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.head = nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.whole(x) + torch.cat([self.left(x), self.right(x)], dim=1)).mean(dim=(2, 3))
