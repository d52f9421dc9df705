"""Activations that write over their input, traced as functions of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.overrides import TorchFunctionMode

__all__ = ["OutOfPlace"]


class OutOfPlace(TorchFunctionMode):
    """Inside it, functions called with `inplace=True` compute next to their input and copy the result over it.

    torch's functionalisation takes a copy for all of them, and a batch whose size is a symbol for few.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Call the function, in place or next to it."""
        given = dict(keywords or {})
        if not given.pop("inplace", False):
            return function(*arguments, **(keywords or {}))
        return arguments[0].copy_(function(*arguments, **given))
