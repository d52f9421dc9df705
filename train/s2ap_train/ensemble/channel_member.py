"""Structurally pruned members: channels out, training, and the record of how it was made."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from s2ap_train.attacks.accuracy import Array
from s2ap_train.compute import Compute
from s2ap_train.ensemble.channel_choice import ChooseChannels
from s2ap_train.ensemble.keep_rates import check_keep_rates, kept_sizes, random_keep_rates
from s2ap_train.models import Classifier, build
from s2ap_train.models.channel_groups import channel_groups, remove_channels
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch, Training, TrainingConfig, train_classifier


@dataclass(frozen=True)
class ChannelPruning:
    """Hyper-parameters of `channel_member`: how much of its channel groups it keeps, see `random_keep_rates`.

    `fresh` draws new weights instead of copying the base's: of the base such a member has the shape only, so whatever
    chose its channels, it is the same for the same seed.
    """

    keep_low: float = 0.1
    keep_high: float = 0.9
    keep_mean: float = 0.5
    fresh: bool = False
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=6, lr=0.05, loss="natural", eps=0.0))

    def __post_init__(self) -> None:
        """Refuse keep rates that cannot be drawn.

        Raises:
            RecipeError: With the rates and what they may be.
        """
        check_keep_rates(low=self.keep_low, high=self.keep_high, mean=self.keep_mean)


@dataclass(frozen=True)
class ChannelMember:
    """A member with channels removed: the network in evaluation mode, the base's channels it kept, its training.

    `kept` holds for each of the base's channel groups, by name, the indices of the channels that stayed.
    """

    model: Classifier
    kept: dict[str, list[int]]
    training: Training


def channel_member(
    base: Classifier,
    choose: ChooseChannels,
    images: Array,
    labels: Array,
    validation: tuple[Array, Array],
    config: ChannelPruning,
    *,
    seed: int,
    compute: Compute | None = None,
    snapshots: Snapshots | None = None,
    on_epoch: OnEpoch | None = None,
) -> ChannelMember:
    """Take channels out of the base, then train what is left; the base is not changed.

    With fresh weights the member does not inherit the base's adversarial directions. The seed decides how many channels
    each group keeps, random choices, fresh weights and the order of training. Other arguments and errors as in
    `train_classifier`.
    """
    compute = Compute(next(base.parameters()).device) if compute is None else compute
    generator = torch.Generator().manual_seed(seed)
    groups = channel_groups(base, base.image_shape, verify=False)
    shares = random_keep_rates(
        len(groups), generator, low=config.keep_low, high=config.keep_high, mean=config.keep_mean
    )
    kept = choose(base, groups, kept_sizes([group.size for group in groups], shares), generator)
    model = compute.place(remove_channels(base, groups, kept, base.image_shape))
    if config.fresh:
        model = compute.place(build(model.architecture(), seed=seed))
    training = train_classifier(
        model,
        images,
        labels,
        validation,
        config.training,
        seed=seed,
        compute=compute,
        snapshots=snapshots,
        on_epoch=on_epoch,
    )
    return ChannelMember(model, {name: stays.nonzero().flatten().tolist() for name, stays in kept.items()}, training)
