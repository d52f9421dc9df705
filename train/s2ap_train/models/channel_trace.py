"""One pass of a network that follows channels through every operator, by labels next to the numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakTensorKeyDictionary

from s2ap_train.models.channel_rules import ChannelRules, Operator
from s2ap_train.models.channel_state import Seen
from s2ap_train.models.modes import attention_in_steps, evaluation_mode

LOGITS = "the logits"


class ChannelTrace(ChannelRules):
    """What a pass of a network says about its channels."""

    def __init__(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Follow one pass, in evaluation mode, over images of this shape."""
        super().__init__(model)
        self._seen: Any = WeakTensorKeyDictionary()
        images = next(model.parameters()).new_full((2, *image_shape), 0.5)
        pixels = self.labels.fresh(image_shape[0])
        self.labels.keep(pixels, "they meet the channels of the image")
        self._seen[images] = Seen(lambda: pixels.reshape(1, -1, 1, 1).expand(images.shape))
        with torch.no_grad(), evaluation_mode(model), self._paths(model), attention_in_steps(), _Dispatch(self):
            logits = model(images)
        if (answer := self.known(logits)) is not None:
            self.labels.keep(answer.labels, LOGITS)

    def known(self, value: Tensor) -> Seen | None:
        """What is known of a tensor that is no parameter and no buffer."""
        found: Seen | None = self._seen.get(value)
        return found

    def note(self, func: Operator, args: tuple[Any, ...], kwargs: dict[str, Any], out: object) -> None:
        """Label what came out of an operator."""
        inputs = [seen for value in tree_flatten((args, kwargs))[0] if (seen := self.of(value)) is not None]
        outputs = out if isinstance(out, list | tuple) else [out]
        if inputs and any(isinstance(value, Tensor) and value.is_floating_point() for value in outputs):
            for value, seen in zip(outputs, self.follow(func, args, inputs, outputs), strict=False):
                if isinstance(value, Tensor) and seen is not None:
                    self._seen[value] = seen

    @contextmanager
    def _paths(self, model: nn.Module) -> Iterator[None]:
        """Within this context it is known which module runs."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self._enter, name)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, _: object) -> None:
        self.running.append((name, module))

    def _leave(self, *_: object) -> None:
        self.running.pop()


class _Dispatch(TorchDispatchMode):
    """Shows every operator that runs to a trace."""

    def __init__(self, trace: ChannelTrace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types for it
        self._trace = trace

    def __torch_dispatch__(
        self, func: Operator, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:  # noqa: ANN401
        out = func(*args, **(kwargs or {}))
        self._trace.note(func, args, kwargs or {}, out)
        return out
