"""What an attacker who knows everything computes with: a differentiable model of what he attacks."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from s2ap_train.twin import Twin

__all__ = ["Path", "View", "bare_view", "purified_by", "twin_view"]

Path = Literal["none", "identity", "exact", "straight_through", "surrogate"]
"""How gradients pass the purifier: not asked, as identity, exactly, clamps ignored, or as its J-free form would."""

View = Callable[[Tensor, Path, int | None], tuple[Tensor, Tensor | None]]
"""What the attacker computes with: (images, path of the gradient, number of members) -> (c, m)."""


def purified_by(twin: Twin, images: Tensor, path: Path) -> Tensor:
    """Images behind the purifier of a file; `path` decides what their gradient is, and 'none' leaves them as is.

    Raises:
        ValueError: For the path 'surrogate': a file holds no J-free form of its purifier.
    """
    if path == "surrogate":
        raise ValueError("the file holds no J-free form of its purifier; attack it by another path")
    return images if path == "none" else twin.purify(images, path)


def twin_view(twin: Twin) -> View:
    """The attacker's view of the whole defence."""

    def view(images: Tensor, path: Path, members: int | None) -> tuple[Tensor, Tensor | None]:
        purified = purified_by(twin, images, path)
        return twin.classify(purified), None if members == 0 else twin.members(purified, members)

    return view


def bare_view(twin: Twin) -> View:
    """The attacker's view of the bare classifier."""
    return lambda images, path, members: (twin.classify(images), None)  # noqa: ARG005
