"""Members of a network of their own, pruned by any method of `s2ap_train.pruning`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from s2ap_defend.manifest import Seeds
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily
from s2ap_train.models import Classifier, ModelTable
from s2ap_train.models.cost import flops as cost
from s2ap_train.pruning import PruningMethod, finetune, prune, shape_after
from s2ap_train.pruning.methods import (
    epochs_known,
    method_name,
    needs_training,
    needs_tuning,
    structure_name,
    training_of,
    without_foreign_keys,
)
from s2ap_train.pruning.prunable import check_prunable
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.training import Run, TrainingConfig, TrainingData, train_classifier

Pruning = Annotated[PruningMethod, Field(discriminator="method"), BeforeValidator(without_foreign_keys)]
"""A method's settings by its name; "s2ap" stands for its `base` with S2AP."""
_PERCENT = range(1, 100)


class PrunedFamily(MemberFamily):
    """Each member is trained, pruned and fine-tuned with a seed of its own; it shares nothing with the plain network.

    Attributes:
        models: Networks, one table a member, repeated when there are fewer tables than members.
        pretraining: Training before pruning; not read by methods that begin with random weights.
        pruning: Method and its hyper-parameters.
        finetune: Training after it; not read by methods that train what they leave.
    """

    family: Literal["pruned"]
    models: Annotated[tuple[ModelTable, ...], Field(min_length=1)]
    pretraining: TrainingConfig | None = None
    pruning: Pruning
    finetune: TrainingConfig | None = None

    @model_validator(mode="after")
    def _has_its_trainings(self) -> Self:
        for name, needed in (("pretraining", needs_training), ("finetune", needs_tuning)):
            if getattr(self, name) is None and needed(self.pruning):
                raise ValueError(f"method {self.pruning.method} needs the table {name}, which is missing")
        return self

    def networks(self) -> Mapping[str, ModelTable]:
        """Those of `models` that there are members for."""
        return {f"models[{place}]": table for place, table in enumerate(self.models[: self.count])}

    def network(self, number: int) -> ModelTable:
        """The models take turns."""
        return self.models[number % len(self.models)]

    def check(self, base: ModelTable, new: Callable[[ModelTable], Classifier]) -> None:  # noqa: ARG002
        """Its own networks must have what is pruned. Arguments and errors as in `MemberFamily.check`."""
        for table in self.networks().values():
            model = new(table)
            check_prunable(model, model.image_shape, self.pruning)

    def shipped(
        self,
        number: int,
        base: ModelTable,  # noqa: ARG002
        new: Callable[[ModelTable], Classifier],
        *,
        seed: int,  # noqa: ARG002
    ) -> Classifier | None:
        """Its own network, without the channels that its method removes. Arguments as in `MemberFamily.shipped`."""
        return shape_after(new(self.network(number)), self.pruning)

    def cheap_enough(self, number: int, new: Callable[[ModelTable], Classifier], *, flops: float) -> str:
        """A sparsity where channels are removed; elsewhere zeros cost what other weights do."""
        if structure_name(self.pruning) != "channel":
            return "only a smaller network in models, or removed channels, cost less: single zeros are computed as well"
        dense = new(self.network(number))

        def suffices(percent: int) -> bool:
            left = shape_after(dense, replace(self.pruning, sparsity=percent / 100))
            return left is not None and cost(left, dense.image_shape) <= flops

        percent = bisect_left(_PERCENT, True, key=suffices) + 1
        if percent in _PERCENT:
            return f"pruning.sparsity {percent / 100:g} is enough, and so is a smaller network in models"
        return "take a smaller network in models"

    def epochs(self, number: int) -> int:  # noqa: ARG002
        """Of all three phases."""
        before = self.pretraining.epochs if self.pretraining is not None and needs_training(self.pruning) else 0
        return before + epochs_of(self.pruning, self.finetune)

    def decides(self, number: int) -> object:
        """Network, trainings and method."""
        return self.family, self.network(number), self.pretraining, self.pruning, self.finetune

    def train(
        self,
        number: int,
        data: TrainingData,
        base: Base,  # noqa: ARG002
        *,
        run: Run,
    ) -> Fitted:
        """Train, prune and fine-tune. Arguments and errors as in `MemberFamily.train`."""
        dense = run.place(data.create(self.network(number), run.seed))
        if self.pretraining is not None and needs_training(self.pruning):
            train_classifier(dense, *data.arrays, self.pretraining, run=run.phase("dense"))
        return fit_pruned(dense, data, self.pruning, self.finetune, pretraining=self.pretraining, run=run)


def fit_pruned(
    dense: Classifier,
    data: TrainingData,
    pruning: PruningMethod,
    tuning: TrainingConfig | None,
    *,
    pretraining: TrainingConfig | None,
    run: Run,
) -> Fitted:
    """Prune a network, fine-tune it where its method needs that, and fold the mask; `dense` is not changed.

    Args:
        dense: The network, trained by `pretraining` with the same seed, or only drawn where the method wants that.
        data: What to train on.
        pruning: The method.
        tuning: Fine-tuning.
        pretraining: What trained `dense`.
        run: The seed is of everything random.

    Raises:
        RecipeError: If the method cannot prune this network so.
    """
    pruned = prune(dense, *data.arrays, pruning, run=run.phase("pruning"))
    tuned = finetune(
        pruned,
        *data.arrays,
        tuning if needs_tuning(pruning) else None,
        structure=structure_name(pruning),
        run=run.phase("finetune"),
    )
    tensors = {f"mask.{name}": mask for name, mask in pruned.masks.items()}
    tensors |= {f"score.{name}": score for name, score in pruned.scores.items()}
    if not isinstance(tuned.model, Classifier):  # our own bug
        raise TypeError(f"pruning returned a {type(tuned.model).__name__}")
    return Fitted(
        model=tuned.model,
        method=manifest_name(pruning),
        seeds=Seeds(initialisation=run.seed, mask=run.seed, order=run.seed),
        adversarially_trained=_last_training(pretraining, pruning, tuning).adversarial,
        dense_weights=weight_counts(dense)[1],
        history=pruned.history + (() if tuned.tuning is None else tuned.tuning.history),
        tensors=tensors,
    )


def manifest_name(pruning: PruningMethod) -> str:
    """What a manifest calls a method: 's2ap', 's2ap-channel', 's2ap-2:4', 'subnetwork', 'iterative-magnitude', ...

    A scratch ticket that is searched on clean images is 'subnetwork' (edge-popup, Ramanujan et al. 2020, arXiv
    1911.13299); Robust Scratch Tickets search it on attacked ones.
    """
    name, structure = method_name(pruning), structure_name(pruning)
    training = training_of(pruning)
    if name == "scratch-ticket" and training is not None and not training.adversarial:
        name = "subnetwork"
    return name if structure == "unstructured" else f"{name}-{structure}"


def epochs_of(pruning: PruningMethod, tuning: TrainingConfig | None) -> int:
    """Epochs of pruning and fine-tuning, as far as they are known before."""
    return epochs_known(pruning) + (tuning.epochs if tuning is not None and needs_tuning(pruning) else 0)


def _last_training(
    pretraining: TrainingConfig | None, pruning: PruningMethod, tuning: TrainingConfig | None
) -> TrainingConfig:
    """The training that the shipped weights ended with."""
    if tuning is not None and needs_tuning(pruning):
        return tuning
    last = training_of(pruning) or pretraining
    if last is None:  # our own bug: a method that trains nothing needs both
        raise ValueError(f"a network that was never trained was pruned by {pruning.method}")
    return last
