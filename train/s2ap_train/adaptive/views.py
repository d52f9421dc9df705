"""What an attacker that knows everything computes with: a differentiable model of what it attacks."""

from collections.abc import Callable

from torch import Tensor

from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.twin import Twin

__all__ = ["View", "bare_view", "twin_view"]

View = Callable[[Tensor, GradientPath, int | None], tuple[Tensor, Tensor | None]]
"""What the attacker computes with: (images, path of the gradient, number of members) -> (c, m)."""


def twin_view(twin: Twin) -> View:
    """The attacker's view of the whole defence."""
    return twin.answers


def bare_view(twin: Twin) -> View:
    """The attacker's view of the bare classifier."""
    return lambda images, path, members: (twin.classify(images), None)  # noqa: ARG005
