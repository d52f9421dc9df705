"""Lottery tickets: the weights that grow large in a short training, trained again from where they began."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Seeds
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily
from s2ap_train.models import Classifier, ModelTable
from s2ap_train.pruning.magnitude import Scope, check_magnitude, magnitude_masks
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.pruning.scores import prunable_weights, weight_counts
from s2ap_train.training import Run, Training, TrainingConfig, TrainingData, apply_masks, train_classifier


@dataclass(frozen=True)
class LotteryTicket:
    """Hyper-parameters of `lottery_ticket`.

    Attributes:
        sparsity: Fraction of the weights that is removed.
        scope: How |w| is compared: over the whole network ("global"), within each layer, or by layer-adaptive size.
        search: The short training of the dense network that the mask is cut after.
        training: The training of the rewound network, to the end.
    """

    sparsity: float = 0.5
    scope: Scope = "global"
    search: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=3, loss="natural", eps=0.0))
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(epochs=20, loss="natural", eps=0.0))

    def __post_init__(self) -> None:
        """Refuse what cannot be pruned.

        Raises:
            RecipeError: With the value and what it may be.
        """
        check_magnitude(self.sparsity, self.scope, 1)
        if self.sparsity == 0:
            raise RecipeError("sparsity is 0; a lottery ticket leaves weights out, set it above 0")


@dataclass(frozen=True)
class Ticket:
    """A trained lottery ticket.

    Attributes:
        model: In evaluation mode; what the mask removed is exactly 0.
        masks: By weight name; True = kept.
        rewound: The weights that the last training began with, by name: those of the initialisation under the mask.
        searched: The short training.
        training: The last training.
    """

    model: Classifier
    masks: dict[str, Tensor]
    rewound: dict[str, Tensor]
    searched: Training
    training: Training


def lottery_ticket(
    model: ModelTable,
    data: TrainingData,
    config: LotteryTicket,
    *,
    run: Run,
) -> Ticket:
    """Draw a network, train it shortly, keep its largest weights, rewind them to their first values, train to the end.

    Frankle and Carbin 2019 (arXiv 1803.03635), one round of pruning, as 'LTH' in Wang et al. 2021 (DOI
    10.1109/ACCESS.2021.3133334). Biases and batch normalisation are rewound as well, and never masked.

    Args:
        model: The network's table.
        data: What to train on.
        config: Mask and trainings.
        run: The seed is of the initial weights and of the order of both trainings.

    Raises:
        RecipeError: If the network cannot be trained or pruned so.
    """
    dense = run.place(data.create(model, run.seed))
    searched = train_classifier(dense, *data.arrays, config.search, run=run.phase("search"))
    masks = magnitude_masks(prunable_weights(dense), sparsity=config.sparsity, scope=config.scope)
    ticket = run.place(data.create(model, run.seed))
    apply_masks(dict(ticket.named_parameters()), masks)
    rewound = {name: tensor.detach().clone() for name, tensor in ticket.state_dict().items()}
    training = train_classifier(ticket, *data.arrays, config.training, run=run.phase("training"), masks=masks)
    return Ticket(ticket, masks, rewound, searched, training)


class LotteryTicketFamily(MemberFamily):
    """Each member is a ticket of its own initialisation; of the plain network it has the architecture only.

    Attributes:
        settings: Sparsity and both trainings.
    """

    family: Literal["lottery-ticket"]
    settings: LotteryTicket

    def check(self, base: ModelTable, new: Callable[[ModelTable], Classifier]) -> None:
        """The network must have what is pruned. Arguments and errors as in `MemberFamily.check`."""
        model = new(base)
        check_prunable(model, model.image_shape, self.settings)

    def epochs(self, number: int) -> int:  # noqa: ARG002
        """Of both trainings."""
        return self.settings.search.epochs + self.settings.training.epochs

    def decides(self, number: int) -> object:  # noqa: ARG002
        """Mask and trainings."""
        return self.family, self.settings

    def train(
        self,
        number: int,  # noqa: ARG002
        data: TrainingData,
        base: Base,
        *,
        run: Run,
    ) -> Fitted:
        """Find and train a ticket. Arguments and errors as in `MemberFamily.train`."""
        ticket = lottery_ticket(base.table, data, self.settings, run=run)
        return Fitted(
            model=ticket.model,
            method="lottery-ticket",
            seeds=Seeds(initialisation=run.seed, mask=run.seed, order=run.seed),
            adversarially_trained=self.settings.training.adversarial,
            dense_weights=weight_counts(ticket.model)[1],
            history=ticket.searched.history + ticket.training.history,
            tensors={f"mask.{name}": mask for name, mask in ticket.masks.items()},
        )
