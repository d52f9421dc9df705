"""Which member is asked first: greedily by the detection power that it adds, per cost."""

from collections.abc import Sequence

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Float64, Int64

_RESOLUTION = (
    9  # decimals of summed evidence, nats: sums of the same increments are ties in whatever order they were added
)


def greedy_order(clean: Float64, fooled: Float64, costs: Sequence[float] | None = None) -> Int64:
    """Order in which each further member raises the area under the ROC curve of the summed evidence most, per cost.

    Gains of zero and below come last: the cheaper first, and a costly member that harms last. Equal members are asked
    in the order of their cost, their own area, their index: the result is a function of the numbers alone.

    Args:
        clean: Increments of every member on clean inputs [n, N].
        fooled: The same on inputs that fool the classifier [n, M].
        costs: Cost of every member [n], in any one unit; None counts each as one.

    Raises:
        RecipeError: If the costs are not n positive numbers.
    """
    members = len(clean)
    price = np.ones(members) if costs is None else np.asarray(costs, dtype=np.float64)
    if price.shape != (members,) or not (np.isfinite(price) & (price > 0)).all():
        raise RecipeError(f"ordering needs {members} positive costs, one a member, got {price.tolist()}")
    alone = [auroc(clean[i], fooled[i]) for i in range(members)]
    so_far = (np.zeros(clean.shape[1]), np.zeros(fooled.shape[1]))
    area = 0.5
    left, order = list(range(members)), list[int]()
    while left:
        areas = {i: auroc(so_far[0] + clean[i], so_far[1] + fooled[i]) for i in left}
        best = max(left, key=lambda i: (_per_cost(areas[i] - area, float(price[i])), -price[i], alone[i], -i))
        so_far = (so_far[0] + clean[best], so_far[1] + fooled[best])
        area = areas[best]
        order.append(best)
        left.remove(best)
    return np.array(order, dtype=np.int64)


def gaining_members(clean: Float64, fooled: Float64) -> int:
    """Leading members of an order up to which the area under the ROC curve rises with each; one at least.

    Args:
        clean: Increments of the members on clean inputs, in their order [n, N].
        fooled: The same on inputs that fool the classifier [n, M].
    """
    areas = [auroc(*pair) for pair in zip(np.cumsum(clean, axis=0), np.cumsum(fooled, axis=0), strict=True)]
    falls = np.flatnonzero(np.diff(areas) <= 0)
    return int(falls[0]) + 1 if len(falls) else len(areas)


def auroc(clean: Float64, fooled: Float64) -> float:
    """Probability that a fooled input has more evidence than a clean one, ties counting half (Mann and Whitney 1947).

    Args:
        clean: Evidence [N].
        fooled: Evidence [M].
    """
    negative, positive = np.sort(np.round(clean, _RESOLUTION)), np.round(fooled, _RESOLUTION)
    below = np.searchsorted(negative, positive, side="left")
    up_to = np.searchsorted(negative, positive, side="right")
    return float(int(below.sum() + up_to.sum()) / (2 * len(negative) * len(positive)))


def _per_cost(gain: float, cost: float) -> float:
    return gain / cost if gain > 0 else gain * cost
