"""Everything that a mask search carries from one epoch to the next, and its snapshot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from s2ap_train.compute import Compute
from s2ap_train.pruning.perturbation import Scores
from s2ap_train.pruning.s2ap import ScoreAscent
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.structures import structure_of
from s2ap_train.storage.checkpoint import restore
from s2ap_train.storage.snapshots import grouped, joined, momentum, restore_momentum
from s2ap_train.training import CollapseWatch, EpochChoice


@dataclass(frozen=True)
class Candidate:
    """One epoch's mask and scores, the network under the mask, and the network with all its weights."""

    model: nn.Module
    searched: nn.Module
    masks: dict[str, Tensor]
    scores: Scores


class SearchState:
    """State of `search_masks`: a copy of the network, its frozen weights, scores, what cuts them, and the optimiser."""

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        method: ScorePruning,
        *,
        seed: int,
        compute: Compute,
        choice: EpochChoice,
        watch: CollapseWatch,
    ) -> None:
        self.method, self.compute, self.choice, self.watch = method, compute, choice, watch
        self.model = compute.place(copy.deepcopy(method.network(model, seed=seed)).requires_grad_(False))
        self.generator = torch.Generator().manual_seed(seed)
        self.structure = structure_of(method.structure, self.model, image_shape)
        start = self.structure.initial_scores(self.model, method.score_start, torch.Generator().manual_seed(seed))
        self.scores = {name: s.requires_grad_() for name, s in start.items()}
        self.allocation = method.allocation(self.structure, self.model, image_shape, list(start))
        s2ap = method.s2ap
        self.ascent = ScoreAscent(s2ap, self.allocation) if s2ap is not None and s2ap.radius else None
        norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and method.trains_affine]
        affine = [p.requires_grad_() for m in norms for p in m.parameters()]
        self.parameters = dict(self.model.named_parameters())
        self.trained = [*self.scores.values(), *affine, *self.allocation.parameters().values()]
        config = method.training
        self.optimiser = torch.optim.SGD(
            self.trained, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.masks = self.allocation.final_masks(self.scores)  # of the last epoch
        self.best: Candidate | None = None
        self.history: list[dict[str, float]] = []
        self.epoch = 0  # the next one
        self.collapse: str | None = None

    def candidate(self, images: Tensor) -> Candidate:
        """The network under the masks of the last epoch; its statistics are measured on clean images if asked for."""
        pruned = self.structure.apply(self.model, self.masks)
        if self.method.recalibrate:
            size = self.method.training.batch_size
            update_bn([images[i : i + size] for i in range(0, len(images), size)], pruned)
            pruned.eval()
        scores = {name: s.detach().clone() for name, s in self.scores.items()}
        return Candidate(pruned, copy.deepcopy(self.model).eval(), self.masks, scores)

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "score": self.scores,
            "allocation": self.allocation.parameters(),
            "momentum": momentum(self.optimiser, self._numbered()),
            "mask": self.masks,
            "generator": {"state": self.generator.get_state()},
        }
        if self.best is not None:
            groups |= {
                "best_model": self.best.model.state_dict(),
                "best_searched": self.best.searched.state_dict(),
                "best_mask": self.best.masks,
                "best_score": self.best.scores,
            }
        record = {
            "epoch": self.epoch,
            "history": self.history,
            "choice": self.choice.state(),
            "watch": self.watch.state(),
            "compute": self.compute.state(),
            "allocation": self.allocation.state(),
            "radius": None if self.ascent is None else self.ascent.radius,
            "collapse": self.collapse,
        }
        return joined(groups), record

    def resume(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`: copied into tensors that exist, whose memory layout decides how sums round.

        Raises:
            RecipeError: If it is that of another network.
        """
        groups = grouped(tensors)
        restore(self.model, groups["model"])
        with torch.no_grad():
            for name, s in self.scores.items():
                s.copy_(groups["score"][name])
            for name, parameter in self.allocation.parameters().items():
                parameter.copy_(groups["allocation"][name])
        restore_momentum(self.optimiser, self._numbered(), groups.get("momentum", {}))
        self.masks = self._masks(groups["mask"])
        self.generator.set_state(groups["generator"]["state"])
        if "best_model" in groups:
            masks, searched = self._masks(groups["best_mask"]), copy.deepcopy(self.model).eval()
            restore(searched, groups["best_searched"])
            pruned = self.structure.apply(searched, masks)
            restore(pruned, groups["best_model"])
            scores = {name: torch.empty_like(s).copy_(groups["best_score"][name]) for name, s in self.scores.items()}
            self.best = Candidate(pruned, searched, masks, {name: s.detach() for name, s in scores.items()})
        self.epoch, self.history = record["epoch"], list(record["history"])
        self.choice.restore(record["choice"])
        self.watch.restore(record["watch"])
        self.compute.restore(record["compute"])
        self.allocation.restore(record["allocation"])
        if self.ascent is not None:
            self.ascent.radius = record["radius"]
        self.collapse = record["collapse"]

    def _masks(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: saved[name].to(s.device) for name, s in self.scores.items()}

    def _numbered(self) -> dict[str, Tensor]:
        return {str(number): tensor for number, tensor in enumerate(self.trained)}
