"""Feature matching: an image whose hidden features are those of a clean image of another class."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.descent import Loss
from s2ap_train.adaptive.search import Search
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.white_box_search import alone, skipped
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.outcome import Outcome

__all__ = ["ATTACKS"]


def _feature_matching(target: Target, task: Task) -> Found:
    """Clean images of other classes that the defence accepts are the guides; the nearest is matched first.

    What is matched are the hidden features of the networks that answer, or the classifier's log-probabilities where
    those are not to be had; a thorough attack then matches the members' log-probabilities with those of the nearest
    guide, too.
    """
    budget, images, labels = alone(task.budget), task.data.images, task.data.labels
    outcome = target.system(images, labels)
    search = Search(target.system, task.data, eps=task.eps)
    broken_by = {"clean image": search.offer(images)}
    for whole in (False, True) if budget.thorough and target.members else (False,):
        clean = _clean_answers(target, images, whole, budget.batch)
        distance = _distance(clean[0], outcome, labels)
        if not torch.isfinite(distance).any():
            return skipped(task, "there is no clean image of another class that the defence accepts")
        order = distance.argsort(1)
        for rank in range(min(1 if whole else budget.targets, len(labels) - 1)):
            guides = order[:, rank]
            able = torch.isfinite(distance.gather(1, guides[:, None])[:, 0]) & ~torch.from_numpy(search.broken)
            noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(task.seed + 7919 * rank))
            before = int(search.broken.sum())
            for rows in torch.split(able.nonzero().flatten(), budget.batch) if able.any() else ():
                loss = _gap(target, whole, [one[rows] for one in clean], [one[guides[rows]] for one in clean])
                search.descend(loss, rows, noise=noise[rows], steps=budget.steps, check_every=budget.check_every)
            name = f"{'features and members' if whole else 'features'}, guide {rank + 1}"
            broken_by[name] = int(search.broken.sum()) - before
    return Found(search.best, {"steps": budget.steps, "broken_by": broken_by})


def _gap(target: Target, members: bool, clean: Sequence[Tensor], wanted: Sequence[Tensor]) -> Loss:
    """Squared distance of every kind of answer [n, D] from what is wanted, as a share of that of the clean image."""
    scales = [(c - w).square().sum(1).clamp_min(1e-12) for c, w in zip(clean, wanted, strict=True)]

    def loss(points: Tensor, local: Tensor) -> Tensor:
        there = _answers(target, points, members)
        gaps = [
            (answer - w[local]).square().sum(1) / scale[local]
            for answer, w, scale in zip(there, wanted, scales, strict=True)
        ]
        return torch.stack(gaps).sum(0)

    return loss


def _answers(target: Target, images: Tensor, members: bool) -> list[Tensor]:
    """What is matched, each [N, D]: features of what answers, and answers of the members where they are asked."""
    ways = [features(images, target.path).flatten(1) for features in target.features]
    hidden = torch.cat(ways, dim=1) if ways else None
    if hidden is not None and not members:
        return [hidden]
    c, m = target.view(images, target.path, None if members else 0)
    return [c if hidden is None else hidden, *([] if m is None else [m.transpose(0, 1).flatten(1)])]


def _clean_answers(target: Target, images: Float32, members: bool, batch: int) -> list[Tensor]:
    """What is matched of clean images, each [N, D]."""
    with torch.no_grad():
        answers = [_answers(target, some, members) for some in torch.split(torch.from_numpy(images), batch)]
    return [torch.cat(kind) for kind in zip(*answers, strict=True)]


def _distance(features: Tensor, outcome: Outcome, labels: Int64) -> Tensor:
    """Distance of every image's features from those of every guide [N, N]; infinite for images that are none."""
    accepted: Bool = ~outcome.flagged & outcome.right(labels)
    y = torch.from_numpy(labels)
    guide = torch.from_numpy(accepted)[None, :] & (y[:, None] != y[None, :])
    return torch.where(guide, torch.cdist(features, features), torch.inf)


ATTACKS: tuple[RedTeamAttack, ...] = (
    RedTeamAttack(
        name="feature-matching",
        run=_feature_matching,
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes="the attacker has a clean image of another class that the defence accepts, and copies its hidden "
        "features",
        source="Sabour et al. 2016, arXiv 1511.05122",
        weight=3.0,
    ),
)
