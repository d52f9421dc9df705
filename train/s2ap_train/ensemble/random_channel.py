"""Random-channel members: a random half of the channels, taken out for good."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array
from s2ap_train.ensemble.channel_member import ChannelMember, train_channel_member
from s2ap_train.ensemble.keep_rates import kept_widths, random_keep_rates
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.training import OnEpoch, TrainingConfig


@dataclass(frozen=True)
class RandomChannel:
    """Hyper-parameters of `random_channel_member`; `fresh` draws new weights instead of copying the base's."""

    keep_low: float = 0.1
    keep_high: float = 0.9
    keep_mean: float = 0.5
    fresh: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, lr=0.05))


def random_channel_member(
    base: SmallCNN,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: RandomChannel,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """A member with random channels of the base (Wang et al. 2021, 'RC'), fine-tuned or trained from fresh weights.

    The seed decides rates, channels, fresh weights and the order of training. Other arguments and errors as in
    `train_classifier`.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = random_keep_rates(
        len(base.widths), generator, low=config.keep_low, high=config.keep_high, mean=config.keep_mean
    )
    kept = random_channels(base.widths, kept_widths(base.widths, rates), generator)
    return train_channel_member(
        base, kept, images, labels, validation, config=config.training, fresh=config.fresh, seed=seed, on_epoch=on_epoch
    )


def random_channels(widths: tuple[int, ...], counts: list[int], generator: torch.Generator) -> list[Tensor]:
    """For each layer, `counts` of its channels, ascending."""
    return [
        torch.randperm(width, generator=generator)[:count].sort().values
        for width, count in zip(widths, counts, strict=True)
    ]
