"""Everything that a mask search carries from one epoch to the next, and its snapshot."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from s2ap_train.pruning.perturbation import Scores
from s2ap_train.pruning.s2ap import ScoreAscent
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.pruning.structures import structure_of
from s2ap_train.storage.checkpoint import restore
from s2ap_train.training import CollapseWatch, JudgedState, Run
from s2ap_train.training.run import Groups


@dataclass(frozen=True)
class Candidate:
    """One epoch's mask and scores, the network under the mask, and the network with all its weights."""

    model: nn.Module
    searched: nn.Module
    masks: dict[str, Tensor]
    scores: Scores


class SearchState(JudgedState):
    """State of `search_masks`: a copy of the network, its frozen weights, scores, what cuts them, and the optimiser."""

    what: ClassVar[str] = " of the mask search"

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int],
        method: ScorePruning,
        watch: CollapseWatch,
        run: Run,
    ) -> None:
        self.method = method
        network = copy.deepcopy(method.network(model, seed=run.seed)).requires_grad_(False)
        network = run.compute_for(model).place(network)
        self.structure = structure_of(method.structure, network, image_shape)
        start = self.structure.initial_scores(network, method.score_start, torch.Generator().manual_seed(run.seed))
        self.scores = {name: s.requires_grad_() for name, s in start.items()}
        self.allocation = method.allocation(self.structure, network, image_shape, list(start))
        s2ap = method.s2ap
        self.ascent = ScoreAscent(s2ap, self.allocation) if s2ap is not None and s2ap.radius else None
        norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and method.trains_affine]
        affine = [p.requires_grad_() for m in norms for p in m.parameters()]
        self.parameters = dict(network.named_parameters())
        trained = [*self.scores.values(), *affine, *self.allocation.parameters().values()]
        super().__init__(network, method.training, {str(n): tensor for n, tensor in enumerate(trained)}, watch, run)
        self.masks = self.allocation.final_masks(self.scores)  # of the last epoch
        self.best: Candidate | None = None

    def candidate(self, images: Tensor) -> Candidate:
        """The network under the masks of the last epoch; its statistics are measured on clean images if asked for."""
        pruned = self.structure.apply(self.model, self.masks)
        if self.method.recalibrate:
            size = self.config.batch_size
            update_bn([images[i : i + size] for i in range(0, len(images), size)], pruned)
            pruned.eval()
        scores = {name: s.detach().clone() for name, s in self.scores.items()}
        return Candidate(pruned, copy.deepcopy(self.model).eval(), self.masks, scores)

    def snapshot(self) -> tuple[dict[str, Mapping[str, Tensor]], dict[str, Any]]:
        """Tensors and JSON values that `resume` needs."""
        groups, record = super().snapshot()
        groups |= {"score": self.scores, "allocation": self.allocation.parameters(), "mask": self.masks}
        if self.best is not None:
            groups |= {
                "best_model": self.best.model.state_dict(),
                "best_searched": self.best.searched.state_dict(),
                "best_mask": self.best.masks,
                "best_score": self.best.scores,
            }
        radius = None if self.ascent is None else self.ascent.radius
        return groups, record | {"allocation": self.allocation.state(), "radius": radius}

    def resume(self, groups: Groups, record: Mapping[str, Any]) -> None:
        """Go on from a `snapshot`. Errors as in `EpochState.resume`."""
        super().resume(groups, record)
        with torch.no_grad():
            for name, s in self.scores.items():
                s.copy_(groups["score"][name])
            for name, parameter in self.allocation.parameters().items():
                parameter.copy_(groups["allocation"][name])
        self.masks = self._masks(groups["mask"])
        if "best_model" in groups:
            masks, searched = self._masks(groups["best_mask"]), copy.deepcopy(self.model).eval()
            restore(searched, groups["best_searched"])
            pruned = self.structure.apply(searched, masks)
            restore(pruned, groups["best_model"])
            scores = {name: torch.empty_like(s).copy_(groups["best_score"][name]) for name, s in self.scores.items()}
            self.best = Candidate(pruned, searched, masks, {name: s.detach() for name, s in scores.items()})
        self.allocation.restore(record["allocation"])
        if self.ascent is not None:
            self.ascent.radius = record["radius"]

    def _masks(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: saved[name].to(s.device) for name, s in self.scores.items()}
