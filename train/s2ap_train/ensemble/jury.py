"""Jurors trained on together, on images that fool all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from s2ap_train.attacks.joint import jury_network
from s2ap_train.models import Classifier
from s2ap_train.training import Run, Training, TrainingConfig, TrainingData, train_classifier
from s2ap_train.training.losses import robust_loss


class Jury(nn.Module):
    """Jurors as one network, images [N, C, H, W] in [0, 1] -> log of their mean probability [N, K].

    Args:
        jurors: One or more, for the same images and classes.
    """

    def __init__(self, jurors: Sequence[Classifier]) -> None:
        super().__init__()
        self.jurors = nn.ModuleList(jurors)
        self.classes = jurors[0].classes

    def forward(self, images: Tensor) -> Tensor:
        """What a mix answers that is all jury and not sharpened."""
        return jury_network([_in_float32(one) for one in self.jurors])(images)


def train_on_together(jury: Jury, data: TrainingData, config: TrainingConfig, *, run: Run) -> Training:
    """Train the jurors of a jury on, in place, each by its own loss on images that fool their mean probability.

    Of the ways to make jurors differ that were compared on Fashion-MNIST it is the one that gained: .9 points of labels
    over as much longer training of each alone (docs/decision.md). Weights that are 0 stay 0: what was pruned does not
    come back. The epoch is chosen by robust validation accuracy of the mean probability.

    Args:
        jury: Trained jurors.
        data: Training and validation images.
        config: Epochs, learning rate, attack and loss.
        run: The seed is of order, augmentation and the attack's random start.

    Raises:
        RecipeError: If the loss is no longer finite before any good epoch.
    """
    masks = {name: weight != 0 for name, weight in jury.named_parameters() if weight.dim() > 1}
    return train_classifier(jury, *data.arrays, config, run=run, trained=True, masks=masks, loss=_each)


def _in_float32(juror: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda images: juror(images).float()


def _each(config: TrainingConfig, jury: nn.Module, x: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
    """The sum over jurors of each one's `robust_loss`: no gradient goes from one to another."""
    assert isinstance(jury, Jury)  # noqa: S101
    return torch.stack([robust_loss(config, one, x, attacked, y) for one in jury.jurors]).sum()
