"""L1-norm members: the channels of the largest filters, taken out for good."""

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
class L1Norm:
    """Hyper-parameters of `l1_norm_member`; `fresh` draws new weights instead of copying the base's.

    Of the base a fresh member has the widths only: it equals the fresh random-channel member of the same seed.
    """

    keep_low: float = 0.1
    keep_high: float = 0.9
    keep_mean: float = 0.5
    fresh: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, lr=0.05))


def l1_norm_member(
    base: SmallCNN,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: L1Norm,
    *,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """A member with the base's filters of largest sum |w|: 'L1N' in Wang et al. 2021, after Li et al. 2017.

    The seed decides how many each layer keeps, fresh weights and the order of training. Other arguments and errors as
    in `train_classifier`.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = random_keep_rates(
        len(base.widths), generator, low=config.keep_low, high=config.keep_high, mean=config.keep_mean
    )
    kept = largest_channels(base, kept_widths(base.widths, rates))
    return train_channel_member(
        base, kept, images, labels, validation, config=config.training, fresh=config.fresh, seed=seed, on_epoch=on_epoch
    )


def largest_channels(model: SmallCNN, counts: list[int]) -> list[Tensor]:
    """For each layer, the `counts` output channels of largest sum |w|, ascending."""
    norms = [b.convolution.weight.detach().abs().sum(dim=(1, 2, 3)) for b in model.each_block()]
    return [norm.topk(count).indices.sort().values for norm, count in zip(norms, counts, strict=True)]
