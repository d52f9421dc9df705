"""What a member costs, known before it is trained, and the limit that its family may set."""

from __future__ import annotations

from collections.abc import Callable

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble.family import MemberFamily
from s2ap_train.models import Classifier, ModelTable
from s2ap_train.models.cost import flops


def check_cost(
    family: MemberFamily, seed: Callable[[int], int], base: ModelTable, new: Callable[[ModelTable], Classifier]
) -> None:
    """Refuse a family one of whose members costs more than its `max_cost`.

    Args:
        family: The table.
        seed: Number of a member -> its seed.
        base: The plain network's table, whose FLOPs are 1.
        new: Makes an untrained network of a table.

    Raises:
        RecipeError: With the member's cost, and what would make it cheaper.
    """
    if family.max_cost is None:
        return
    whole = new(base)
    unit = flops(whole, whole.image_shape)
    for number in range(family.count):
        shipped = family.shipped(number, base, new, seed=seed(number))
        if shipped is None:
            raise RecipeError(
                "max_cost is checked before training, but this method learns how much each layer keeps; take one that "
                'keeps the same share of every layer, such as "hydra", or remove max_cost'
            )
        cost = flops(shipped, shipped.image_shape) / unit
        if cost > family.max_cost:
            enough = family.cheap_enough(number, new, flops=family.max_cost * unit)
            raise RecipeError(
                f"member {number} would cost {cost:.3f} of the FLOPs of the recipe's model, max_cost is "
                f"{family.max_cost:g}; {enough}"
            )
