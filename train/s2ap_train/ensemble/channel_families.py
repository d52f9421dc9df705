"""Members with channels of the plain network physically removed: random channel, L1 norm, and fresh weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from s2ap_defend.manifest import Seeds
from s2ap_train.ensemble.channel_choice import largest_channels, random_channels
from s2ap_train.ensemble.channel_member import ChannelPruning, channel_member
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily, TrainingData
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch


class ChannelFamily(MemberFamily):
    """Channels are taken out of the plain network, at random or all but those of the largest filters; then it trains.

    With `settings.fresh` members take only their shape from it, not its weights, and are called 'fresh-channel'.
    """

    family: Literal["random-channel", "l1-norm"]
    settings: ChannelPruning

    starts_from_base: ClassVar[bool] = True

    def epochs(self, number: int) -> int:  # noqa: ARG002
        """Of the training after the removal."""
        return self.settings.training.epochs

    def decides(self, number: int) -> object:  # noqa: ARG002
        """How channels are chosen, and the training."""
        return self.family, self.settings

    def train(
        self,
        number: int,  # noqa: ARG002
        data: TrainingData,
        base: Base,
        *,
        seed: int,
        snapshots: Snapshots | None = None,
        on_epoch: OnEpoch | None = None,
    ) -> Fitted:
        """Remove channels and train. Arguments and errors as in `MemberFamily.train`."""
        network = base.network()
        member = channel_member(
            network,
            random_channels if self.family == "random-channel" else largest_channels,
            *data.arrays,
            self.settings,
            seed=seed,
            compute=data.compute,
            snapshots=snapshots,
            on_epoch=on_epoch,
        )
        fresh = self.settings.fresh
        return Fitted(
            model=member.model,
            method="fresh-channel" if fresh else self.family,
            seeds=Seeds(initialisation=seed if fresh else base.seed, mask=seed, order=seed),
            adversarially_trained=self.settings.training.adversarial,
            dense_weights=weight_counts(network)[1],
            history=member.training.history,
            details={"kept_channels": member.kept},
        )
