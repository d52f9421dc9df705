"""Members with channels of the plain network physically removed: random channel, L1 norm, and fresh weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Seeds
from s2ap_train.attacks.accuracy import Array
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily
from s2ap_train.models import Classifier, ModelTable, UserNetwork, build
from s2ap_train.models.channel_groups import ChannelGroup, channel_groups, channel_sums, remove_channels
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.training import Run, Training, TrainingConfig, TrainingData, train_classifier

ChooseChannels = Callable[[Classifier, Sequence[ChannelGroup], Sequence[int], torch.Generator], Mapping[str, Tensor]]
"""A network, its groups, how many channels each keeps, randomness -> by group name, which: bool [size]."""


@dataclass(frozen=True)
class ChannelPruning:
    """Hyper-parameters of `channel_member`: how much of its channel groups it keeps, see `random_keep_rates`.

    Attributes:
        keep_low: Least share of its channels that a group keeps.
        keep_high: Largest share.
        keep_mean: Mean share over the groups.
        fresh: Draw new weights instead of copying the base's: of the base such a member has the shape only, so whatever
            chose its channels, it is the same for the same seed.
        training: Of what is left.
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
        _check_keep_rates(self.keep_low, self.keep_high, self.keep_mean)


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
    run: Run,
) -> ChannelMember:
    """Take channels out of the base, then train what is left; the base is not changed.

    With fresh weights the member does not inherit the base's adversarial directions. The run's seed decides how many
    channels each group keeps, random choices, fresh weights and the order of training. Other arguments and errors as in
    `train_classifier`.
    """
    compute, generator = run.compute_for(base), torch.Generator().manual_seed(run.seed)
    model, kept = _with_fewer_channels(base, choose, config, generator)
    model = compute.place(model)
    if config.fresh:
        model = compute.place(build(model.architecture(), seed=run.seed))
    training = train_classifier(model, images, labels, validation, config.training, run=run)
    return ChannelMember(model, {name: stays.nonzero().flatten().tolist() for name, stays in kept.items()}, training)


def _with_fewer_channels(
    base: Classifier, choose: ChooseChannels, config: ChannelPruning, generator: torch.Generator
) -> tuple[Classifier, Mapping[str, Tensor]]:
    """The base without some channels, not trained, and by group name which of its channels stayed, bool [size]."""
    groups = _groups(base)
    rates = random_keep_rates(len(groups), generator, low=config.keep_low, high=config.keep_high, mean=config.keep_mean)
    kept = choose(base, groups, kept_sizes([group.size for group in groups], rates), generator)
    return remove_channels(base, groups, kept), kept


def _groups(base: Classifier) -> tuple[ChannelGroup, ...]:
    """Of our own networks it is known that removal is gating; users' are verified."""
    return channel_groups(base, base.image_shape, verify=isinstance(base, UserNetwork))


class ChannelFamily(MemberFamily):
    """Channels are taken out of the plain network, at random or all but those of the largest filters; then it trains.

    With `settings.fresh` members take only their shape from it, not its weights, and are called 'fresh-channel'.

    Attributes:
        settings: How many channels stay, and the training.
    """

    family: Literal["random-channel", "l1-norm"]
    settings: ChannelPruning

    starts_from_base: ClassVar[bool] = True

    def check(self, base: ModelTable, new: Callable[[ModelTable], Classifier]) -> None:
        """The plain network must have channels that can leave. Arguments and errors as in `MemberFamily.check`."""
        _groups(new(base))

    def shipped(
        self,
        number: int,  # noqa: ARG002
        base: ModelTable,
        new: Callable[[ModelTable], Classifier],
        *,
        seed: int,
    ) -> Classifier:
        """The plain network with as many channels as the seed leaves. Arguments as in `MemberFamily.shipped`."""
        generator = torch.Generator().manual_seed(seed)
        return _with_fewer_channels(new(base), largest_channels, self.settings, generator)[0]

    def cheap_enough(self, number: int, new: Callable[[ModelTable], Classifier], *, flops: float) -> str:  # noqa: ARG002
        """Fewer channels. Arguments as in `MemberFamily.cheap_enough`."""
        return "lower settings.keep_mean and settings.keep_high, or raise max_cost"

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
        run: Run,
    ) -> Fitted:
        """Remove channels and train. Arguments and errors as in `MemberFamily.train`."""
        network, fresh = base.network(), self.settings.fresh
        choose = random_channels if self.family == "random-channel" else largest_channels
        member = channel_member(network, choose, *data.arrays, self.settings, run=run)
        return Fitted(
            model=member.model,
            method="fresh-channel" if fresh else self.family,
            seeds=Seeds(initialisation=run.seed if fresh else base.seed, mask=run.seed, order=run.seed),
            adversarially_trained=self.settings.training.adversarial,
            dense_weights=weight_counts(network)[1],
            history=member.training.history,
            details={"kept_channels": member.kept},
        )


def random_channels(
    base: Classifier,  # noqa: ARG001
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Random ones: 'RC' in Wang et al. 2021 (DOI 10.1109/ACCESS.2021.3133334)."""
    return {
        group.name: _only(group.size, torch.randperm(group.size, generator=generator)[:count])
        for group, count in zip(groups, counts, strict=True)
    }


def largest_channels(
    base: Classifier,
    groups: Sequence[ChannelGroup],
    counts: Sequence[int],
    generator: torch.Generator,  # noqa: ARG001
) -> dict[str, Tensor]:
    """Those of largest sum |w| in all layers that produce them: 'L1N' in Wang et al. 2021, after Li et al. 2017."""
    norms = channel_sums(groups, {name: weight.detach().abs() for name, weight in base.named_parameters()})
    return {
        group.name: _only(group.size, norms[group.name].topk(count).indices)
        for group, count in zip(groups, counts, strict=True)
    }


def random_keep_rates(
    groups: int, generator: torch.Generator, *, low: float = 0.1, high: float = 0.9, mean: float = 0.5
) -> list[float]:
    """A keep rate per channel group, uniform in [low, high] and then moved together until their mean is `mean`.

    Wang et al. 2021 (DOI 10.1109/ACCESS.2021.3133334) keep 10-90 % of a layer and 50 % on average. One group alone gets
    the mean.

    Raises:
        RecipeError: Unless 0 < low <= mean <= high <= 1.
    """
    _check_keep_rates(low, high, mean)
    rates = low + (high - low) * torch.rand(groups, generator=generator, dtype=torch.float64)
    for _ in range(100):  # what one group cannot take is shared by the others
        rates = (rates + mean - rates.mean()).clamp(low, high)
    return [float(rate) for rate in rates]


def kept_sizes(sizes: Sequence[int], rates: Sequence[float]) -> list[int]:
    """Channels that groups of these sizes keep: the nearest whole number, at least one."""
    return [max(1, round(size * rate)) for size, rate in zip(sizes, rates, strict=True)]


def _check_keep_rates(low: float, high: float, mean: float) -> None:
    if not 0 < low <= mean <= high <= 1:
        raise RecipeError(f"keep rates need 0 < low <= mean <= high <= 1; found low {low}, mean {mean}, high {high}")


def _only(size: int, channels: Tensor) -> Tensor:
    """Bool [size], True at these indices."""
    return torch.zeros(size, dtype=torch.bool, device=channels.device).index_fill(0, channels, True)
