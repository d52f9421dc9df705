"""L1-norm members: the channels of the largest filters, taken out for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from s2ap_train.attacks.accuracy import Array
from s2ap_train.ensemble.channel_member import ChannelMember, KeepRates, only, train_channel_member
from s2ap_train.models import Classifier
from s2ap_train.models.channel_groups import ChannelGroup, channel_sums
from s2ap_train.snapshots import Snapshots
from s2ap_train.training import OnEpoch, TrainingConfig


@dataclass(frozen=True)
class L1Norm:
    """Hyper-parameters of `l1_norm_member`; `fresh` draws new weights instead of copying the base's.

    Of the base a fresh member has the shape only: it equals the fresh random-channel member of the same seed.
    """

    keep_low: float = 0.1
    keep_high: float = 0.9
    keep_mean: float = 0.5
    fresh: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, lr=0.05, loss="natural", eps=0.0))


def l1_norm_member(
    base: Classifier,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: L1Norm,
    *,
    seed: int,
    snapshots: Snapshots | None = None,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """A member with the base's filters of largest sum |w|: 'L1N' in Wang et al. 2021, after Li et al. 2017.

    The seed decides how many each channel group keeps, fresh weights and the order of training. Other arguments and
    errors as in `train_classifier`.
    """
    weights = dict(base.named_parameters())

    def choose(groups: Sequence[ChannelGroup], counts: Sequence[int], _: torch.Generator) -> dict[str, Tensor]:
        return largest_channels(weights, groups, counts)

    return train_channel_member(
        base,
        choose,
        images,
        labels,
        validation,
        rates=KeepRates(config.keep_low, config.keep_high, config.keep_mean, config.fresh),
        config=config.training,
        seed=seed,
        snapshots=snapshots,
        on_epoch=on_epoch,
    )


def largest_channels(
    weights: Mapping[str, Tensor], groups: Sequence[ChannelGroup], counts: Sequence[int]
) -> dict[str, Tensor]:
    """For each group by name, its `counts` channels of largest sum |w| in all layers that produce them: bool [size]."""
    norms = channel_sums(groups, {name: weight.detach().abs() for name, weight in weights.items()})
    return {
        group.name: only(group.size, norms[group.name].topk(count).indices)
        for group, count in zip(groups, counts, strict=True)
    }
