"""Random-channel members: a random half of the channels, taken out for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array
from s2ap_train.ensemble.channel_member import ChannelMember, KeepRates, only, train_channel_member
from s2ap_train.models import Classifier
from s2ap_train.models.channel_groups import ChannelGroup
from s2ap_train.snapshots import Snapshots
from s2ap_train.training import OnEpoch, TrainingConfig


@dataclass(frozen=True)
class RandomChannel:
    """Hyper-parameters of `random_channel_member`; `fresh` draws new weights instead of copying the base's."""

    keep_low: float = 0.1
    keep_high: float = 0.9
    keep_mean: float = 0.5
    fresh: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, lr=0.05, loss="natural", eps=0.0))


def random_channel_member(
    base: Classifier,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: RandomChannel,
    *,
    seed: int,
    snapshots: Snapshots | None = None,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """A member with random channels of the base (Wang et al. 2021, 'RC'), fine-tuned or trained from fresh weights.

    The seed decides rates, channels, fresh weights and the order of training. Other arguments and errors as in
    `train_classifier`.
    """
    return train_channel_member(
        base,
        random_channels,
        images,
        labels,
        validation,
        rates=KeepRates(config.keep_low, config.keep_high, config.keep_mean, config.fresh),
        config=config.training,
        seed=seed,
        snapshots=snapshots,
        on_epoch=on_epoch,
    )


def random_channels(
    groups: Sequence[ChannelGroup], counts: Sequence[int], generator: torch.Generator
) -> dict[str, Tensor]:
    """For each group by name, `counts` of its channels: bool [size]."""
    return {
        group.name: only(group.size, torch.randperm(group.size, generator=generator)[:count])
        for group, count in zip(groups, counts, strict=True)
    }
