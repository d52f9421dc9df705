"""One process of a training run: its device, its precision, and what it shares with the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Precision = Literal["32", "bf16", "16"]

_FIRST_LOSS_SCALE, _STEPS_BEFORE_GROWTH = 2.0**16, 2000  # Micikevicius et al. 2018, section 3.2 (arXiv 1710.03740)
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


class LostProcessError(RuntimeError):
    """Another process ended in the middle of the work; what made it end is the error that counts."""


class Compute:
    """One process of a training run: its device, its precision, and what it shares with the others.

    Every process holds the whole network and takes its share of each batch. Gradients come from `gradients`, which
    averages them, so perturbations, optimiser steps and weights are the same in all of them. Weights and optimiser
    state are always float32: lower precision is that of the passes under `autocast`.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        precision: Precision = "32",
        channels_last: bool = False,
        fabric: Any = None,  # noqa: ANN401  (lightning_fabric.Fabric, imported only where processes are launched)
    ) -> None:
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.rank: int = fabric.global_rank if fabric is not None else 0
        self.world_size: int = fabric.world_size if fabric is not None else 1
        self.loss_scale = _FIRST_LOSS_SCALE if precision == "16" else 1.0
        self._steps_since_overflow = 0
        self._fabric, self._channels_last = fabric, channels_last

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def place(self, model: M) -> M:
        """The same model, moved to this device and memory layout in place."""
        model.to(self.device)
        if self._channels_last:
            model.to(memory_format=torch.channels_last)
        return model

    def images(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] on this device, in its memory layout."""
        layout = torch.channels_last if self._channels_last and images.dim() == 4 else torch.preserve_format
        return images.to(self.device, memory_format=layout)

    def autocast(self) -> AbstractContextManager[object]:
        """Within this context passes run in the precision asked for; leave it before weights are changed in place."""
        if self.precision == "32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.precision])

    def gradients(self, loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a loss in tensors, averaged over the processes; 0 for a tensor that the loss does not use.

        For precision "16" the loss is scaled by a power of two so that float16 does not round small gradients to 0;
        where the scale is too large for a gradient to be finite, it is halved and the backward pass runs again. So no
        step is skipped, and a gradient that is still not finite is a fault of the training.
        """
        if self.precision != "16":
            return self.mean(list(torch.autograd.grad(loss, tensors, materialize_grads=True)))
        while True:
            scaled = torch.autograd.grad(loss * self.loss_scale, tensors, retain_graph=True, materialize_grads=True)
            gradients = self.mean([gradient / self.loss_scale for gradient in scaled])  # alike in all processes
            if bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()):
                self._steps_since_overflow += 1
                if self._steps_since_overflow == _STEPS_BEFORE_GROWTH:
                    self.loss_scale, self._steps_since_overflow = 2 * self.loss_scale, 0
                return gradients
            if self.loss_scale <= 1:
                return gradients
            self.loss_scale, self._steps_since_overflow = self.loss_scale / 2, 0

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor averaged over the processes; with one process, the tensors themselves."""
        if self.world_size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])  # one message instead of one a tensor
        try:
            flat = self._fabric.all_reduce(flat, reduce_op="mean")
        except RuntimeError as error:
            raise LostProcessError(str(error).partition("\n")[0]) from error
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [
            torch.empty_like(tensor).copy_(part.reshape(tensor.shape))
            for tensor, part in zip(tensors, parts, strict=True)
        ]

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch, cut along dimension 0 into parts that differ by at most one row."""
        return rows if self.world_size == 1 else rows.tensor_split(self.world_size)[self.rank]

    @torch.no_grad()
    def average_statistics(self, *models: nn.Module) -> None:
        """Average the running statistics of batch normalisation over the processes, in place."""
        if self.world_size == 1:
            return
        buffers = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
        for buffer, mean in zip(buffers, self.mean(buffers) if buffers else [], strict=True):
            buffer.copy_(mean)

    def state(self) -> dict[str, float]:
        """What `restore` needs so that a resumed run scales its losses alike, as JSON values."""
        return {"loss_scale": self.loss_scale, "steps_since_overflow": self._steps_since_overflow}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from a `state()` of the same precision."""
        self.loss_scale = float(state["loss_scale"])
        self._steps_since_overflow = int(state["steps_since_overflow"])


LOCAL = Compute()
"""This process alone, on the CPU, in 32 bit."""
