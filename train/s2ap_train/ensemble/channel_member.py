"""What all structurally pruned members share: channels out, training, and the record of how it was made."""

from __future__ import annotations

from dataclasses import dataclass

from s2ap_train.attacks.accuracy import Array
from s2ap_train.models.small_cnn import SmallCNN
from s2ap_train.pruning.channels import Channels, fresh_network, remove_channels
from s2ap_train.training import OnEpoch, Training, TrainingConfig, train_classifier


@dataclass(frozen=True)
class ChannelMember:
    """A member with channels removed: the network in evaluation mode, the base's channels it kept, its training."""

    model: SmallCNN
    kept: list[list[int]]
    training: Training


def train_channel_member(
    base: SmallCNN,
    kept: Channels,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    *,
    config: TrainingConfig,
    fresh: bool,
    seed: int,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """Take the other channels out of the base, then train what is left; the base is not changed.

    With `fresh` the architecture is kept and the weights are drawn anew from `seed`: the member then does not inherit
    the base's adversarial directions. Other arguments and errors as in `train_classifier`.
    """
    model = fresh_network(base, kept, seed=seed) if fresh else remove_channels(base, kept)
    training = train_classifier(model, images, labels, validation, config, seed=seed, on_epoch=on_epoch)
    return ChannelMember(model=model, kept=[channels.tolist() for channels in kept], training=training)
