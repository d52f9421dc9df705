"""The mutants of the plain network as a family of members."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from s2ap_defend.manifest import Seeds
from s2ap_train.ensemble.family import Base, Fitted, MemberFamily, TrainingData
from s2ap_train.ensemble.mutation import Mutation, Operator, mutant
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.storage.snapshots import Snapshots
from s2ap_train.training import OnEpoch


class MutationFamily(MemberFamily):
    """Each member is a mutant that keeps most of the plain network's accuracy; operators take turns."""

    family: Literal["mutation"]
    settings: Mutation = Mutation()

    starts_from_base: ClassVar[bool] = True

    def epochs(self, number: int) -> int:  # noqa: ARG002
        """None: mutants are not trained."""
        return 0

    def decides(self, number: int) -> object:
        """Operator and settings, whatever other operators take turns."""
        return self.family, self._operator(number), self.settings.rate, self.settings.least_accuracy

    def train(
        self,
        number: int,
        data: TrainingData,
        base: Base,
        *,
        seed: int,
        snapshots: Snapshots | None = None,  # noqa: ARG002
        on_epoch: OnEpoch | None = None,  # noqa: ARG002
    ) -> Fitted:
        """Draw a mutant. Arguments and errors as in `MemberFamily.train`."""
        network, operator = data.compute.place(copy.deepcopy(base.network())), self._operator(number)
        made = mutant(network, data.validation, operator, self.settings, seed=seed)
        return Fitted(
            model=made.model,
            method=f"mutation-{operator}",
            seeds=Seeds(initialisation=base.seed, mask=seed, order=base.seed),
            adversarially_trained=False,
            dense_weights=weight_counts(network)[1],
            details={"draws": made.draws},
        )

    def _operator(self, number: int) -> Operator:
        return self.settings.operators[number % len(self.settings.operators)]
