"""Robust Scratch Tickets: a robust subnetwork of random weights that are never trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.scores import ScoreStart, prunable_weights


@dataclass(frozen=True)
class ScratchTicket(ScorePruning):
    """Find a robust subnetwork of `random_network(model)`: only scores are trained, nothing is fine-tuned.

    Fu et al. 2021, "Drawing robust scratch tickets" (arXiv 2110.14068), called RLTH in some summaries. Of the given
    network only the architecture counts, and scores start at random, as weights do.
    """

    score_start: ScoreStart = "kaiming_uniform"
    method: Literal["scratch-ticket"] = field(default="scratch-ticket", kw_only=True)

    trains_affine: ClassVar[bool] = False
    starts_trained: ClassVar[bool] = False

    def network(self, model: nn.Module, *, seed: int) -> nn.Module:
        """The random network."""
        return random_network(model, seed=seed)


def random_network(model: nn.Module, *, seed: int) -> nn.Module:
    """A copy with signed-constant weights: the standard deviation of Kaiming's normal initialisation, random signs.

    Biases are 0, normalisation has scale 1, shift 0 and fresh statistics (Ramanujan et al. 2020, arXiv 1911.13299).
    """
    drawn = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in prunable_weights(drawn).values():
            size = (2 / weight[0].numel()) ** 0.5
            signs = torch.randint(0, 2, weight.shape, generator=generator) * 2 - 1
            weight.copy_(signs * size)
        for module in drawn.modules():
            if isinstance(module, _BatchNorm):
                module.reset_running_stats()
                if module.affine:
                    nn.init.ones_(module.weight)
                    nn.init.zeros_(module.bias)
            elif isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                nn.init.zeros_(bias)
    return drawn
