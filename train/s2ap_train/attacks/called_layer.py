"""A function as a module with a layer to hook: attacks on features also work where there are no modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2ap_defend.errors import RecipeError

__all__ = ["MIDDLE", "CalledLayer"]

MIDDLE = "middle"
"""Name of the layer, for `s2ap_train.attacks.hidden_layer.hidden_layer`."""

_WEIGHTED = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.nn.functional.linear,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
}


class CalledLayer(nn.Module):
    """A classifier that is a function, with what its middle layer returns as the output of the module `middle`.

    A layer is a convolution or a matrix product that the function calls; of n layers the middle one is number
    (n - 1) // 2 from 0. What it returns is not rectified yet. The function calls as many of them each time.

    Args:
        classifier: Images [N, C, H, W] -> logits or log-probabilities [N, K], made of torch functions.
    """

    def __init__(self, classifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = nn.Identity()
        self._answer = [classifier]  # in a list: a module in it is not registered, so its mode stays the caller's
        self._place: int | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K].

        Raises:
            RecipeError: If the function calls no such layer.
        """
        if self._place is None:
            count = self.layers(images[:1])
            if not count:
                raise RecipeError(
                    "the classifier calls no convolution and no matrix product, so it has no hidden layer to attack; "
                    "leave out the attacks ila and fia"
                )
            self._place = (count - 1) // 2
        with _Calls(self._place, self.middle):
            return self._answer[0](images)

    def layers(self, images: Tensor) -> int:
        """How many layers the function calls for images [N, C, H, W], without gradients."""
        counted = _Calls(None, self.middle)
        with torch.no_grad(), counted:
            self._answer[0](images)
        return counted.seen


class _Calls(TorchFunctionMode):
    """Counts calls of layers, and sends what one of them returns through a module."""

    def __init__(self, place: int | None, module: nn.Module) -> None:
        super().__init__()
        self.seen = 0
        self._place, self._module = place, module

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever torch returns
        result = func(*args, **(kwargs or {}))
        if func not in _WEIGHTED:
            return result
        place, self.seen = self.seen, self.seen + 1
        return self._module(result) if place == self._place else result
