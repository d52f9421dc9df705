"""What all structurally pruned members share: channels out, training, and the record of how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array
from s2ap_train.ensemble.keep_rates import kept_sizes, random_keep_rates
from s2ap_train.models import Classifier, build
from s2ap_train.models.channel_groups import ChannelGroup, channel_groups, remove_channels
from s2ap_train.snapshots import Snapshots
from s2ap_train.training import OnEpoch, Training, TrainingConfig, train_classifier

ChooseChannels = Callable[[Sequence[ChannelGroup], Sequence[int], torch.Generator], Mapping[str, Tensor]]
"""Groups and how many channels each keeps -> by group name, which: bool [size]."""


@dataclass(frozen=True)
class ChannelMember:
    """A member with channels removed: the network in evaluation mode, the base's channels it kept, its training.

    `kept` holds for each of the base's channel groups, by name, the indices of the channels that stayed.
    """

    model: Classifier
    kept: dict[str, list[int]]
    training: Training


@dataclass(frozen=True)
class KeepRates:
    """How much of its channel groups a member keeps, see `random_keep_rates`; `fresh` draws new weights."""

    low: float
    high: float
    mean: float
    fresh: bool


def train_channel_member(
    base: Classifier,
    choose: ChooseChannels,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    *,
    rates: KeepRates,
    config: TrainingConfig,
    seed: int,
    snapshots: Snapshots | None = None,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """Take channels out of the base, then train what is left; the base is not changed.

    With fresh weights the architecture is kept and the weights are drawn anew from the seed: the member then does not
    inherit the base's adversarial directions. Other arguments and errors as in `train_classifier`.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(base, base.image_shape, verify=False)
    shares = random_keep_rates(len(groups), generator, low=rates.low, high=rates.high, mean=rates.mean)
    kept = choose(groups, kept_sizes([group.size for group in groups], shares), generator)
    model = remove_channels(base, groups, kept, base.image_shape)
    if rates.fresh:
        model = build(model.architecture(), seed=seed).to(next(base.parameters()).device)
    training = train_classifier(
        model, images, labels, validation, config, seed=seed, snapshots=snapshots, on_epoch=on_epoch
    )
    return ChannelMember(model, {name: stays.nonzero().flatten().tolist() for name, stays in kept.items()}, training)


def only(size: int, channels: Tensor) -> Tensor:
    """Bool [size], True at these indices."""
    return torch.zeros(size, dtype=torch.bool, device=channels.device).index_fill(0, channels, True)
