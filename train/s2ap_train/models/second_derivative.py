"""Operators that torch differentiates once only, computed for a while by others that can be differentiated twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import hardsigmoid, hardtanh
from torch.overrides import TorchFunctionMode


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Within this context Hardsigmoid and scaled dot-product attention have second derivatives; the values are theirs.

    Up to rounding. Other operators without one keep torch's error.
    """
    with sdpa_kernel(SDPBackend.MATH), _Replaced():
        yield


class _Replaced(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func in {hardsigmoid, torch._C._nn.hardsigmoid}:
            return _hardsigmoid(args[0])
        return func(*args, **(kwargs or {}))


def _hardsigmoid(x: Tensor) -> Tensor:
    return hardtanh(x + 3, 0.0, 6.0) / 6
