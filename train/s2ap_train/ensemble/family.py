"""What a family of members is: a table of a recipe that trains its members one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from s2ap_defend.decision_record import Role
from s2ap_defend.manifest import Seeds
from s2ap_train.models import Classifier, ModelTable
from s2ap_train.pruning.scores import weight_counts
from s2ap_train.settings import placed
from s2ap_train.training import Run, TrainingData


@dataclass(frozen=True)
class Base:
    """The plain network: its table, and how to get it, trained, with the seed that made it."""

    table: ModelTable
    seed: int
    network: Callable[[], Classifier]


@dataclass(frozen=True)
class Fitted:
    """A network after training, and how it came about.

    Attributes:
        model: The network as it is shipped: masks folded into the weights, channels gone.
        method: What the manifest calls it.
        seeds: Of initial weights, of mask, channels or mutation, and of the order of the training data.
        adversarially_trained: Whether the training that its weights ended with saw attacks.
        dense_weights: Prunable weights before anything was pruned.
        history: A record per epoch.
        tensors: Masks and scores by name, to be stored with the weights.
        details: Further JSON values for the record.
    """

    model: Classifier
    method: str
    seeds: Seeds
    adversarially_trained: bool
    dense_weights: int
    history: tuple[dict[str, float], ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction of the dense network's weights that are 0 or gone; 0 of a network whose weights cannot be pruned."""
        return 0.0 if not self.dense_weights else 1.0 - weight_counts(self.model)[0] / self.dense_weights


class MemberFamily(BaseModel):
    """Members of one kind; families extend it.

    Attributes:
        count: How many; 0 lists a family without training it.
        first_seed: Added to the recipe's seed for the first member, and one more for each further; None takes a number
            that the family's name alone decides.
        role: A 'juror' is robust and may vote on the label, a 'sensor' only gives evidence.
        max_cost: The most that a member may cost, as a fraction of the FLOPs of the recipe's `model`; a family with a
            dearer member is refused before anything is trained. None: any cost.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: Annotated[int, Field(ge=0)]
    first_seed: Annotated[int, Field(ge=0)] | None = None
    role: Role = "sensor"
    max_cost: Annotated[float, Field(gt=0)] | None = None

    _placed = field_validator(
        "models", "pretraining", "pruning", "finetune", "settings", mode="wrap", check_fields=False
    )(placed)

    starts_from_base: ClassVar[bool] = False
    """Whether members need the trained plain network."""

    def networks(self) -> Mapping[str, ModelTable]:
        """The networks that members are made of, other than the plain one, by their keys in this table."""
        return {}

    def network(self, number: int) -> ModelTable | None:  # noqa: ARG002
        """The network that member `number` is made of; None: that of the plain one."""
        return None

    def shipped(
        self,
        number: int,  # noqa: ARG002
        base: ModelTable,
        new: Callable[[ModelTable], Classifier],
        *,
        seed: int,  # noqa: ARG002
    ) -> Classifier | None:
        """An untrained network of the shape that member `number` is shipped in; None where training decides it.

        Args:
            number: From 0.
            base: The plain network's table.
            new: Makes an untrained network of a table.
            seed: The member's.
        """
        return new(base)

    def check(self, base: ModelTable, new: Callable[[ModelTable], Classifier]) -> None:
        """Refuse networks that members cannot be made of, before anything is trained. Arguments as in `shipped`.

        Raises:
            RecipeError: With the layers or parameters that are in the way, and what to use instead.
        """

    def cheap_enough(self, number: int, new: Callable[[ModelTable], Classifier], *, flops: float) -> str:  # noqa: ARG002
        """What to change so that member `number` costs at most so many FLOPs, for a message. `new` as in `shipped`."""
        return "such members cost what the recipe's model costs; take a structured family, or raise max_cost"

    def epochs(self, number: int) -> int:
        """Epochs that member `number`, from 0, is trained for, as far as they are known."""
        raise NotImplementedError

    def decides(self, number: int) -> object:
        """Everything of this table that decides member `number`: a kept member is reused while it is the same."""
        raise NotImplementedError

    def train(
        self,
        number: int,
        data: TrainingData,
        base: Base,
        *,
        run: Run,
    ) -> Fitted:
        """Train member `number`.

        Args:
            number: From 0; the same seed and number give the same member on one machine.
            data: What to train on.
            base: The plain network.
            run: The seed is of everything random.

        Raises:
            RecipeError: If a setting cannot be trained.
        """
        raise NotImplementedError
