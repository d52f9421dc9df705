"""Orthogonal projected gradient descent: steps that serve one of classifier and detector and leave the other.

The classifier is whoever gives the answer.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from s2ap_train.adaptive.objectives import AnswerSurrogate, EvidenceSurrogate, targeted_margin
from s2ap_train.adaptive.search import AdaptiveBudget, Search, likeliest_wrong
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.white_box_search import alone, surrogates_of
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "Orthogonal", "step_direction"]

Orthogonal = Literal["classifier", "detector", "neither"]
"""Whose steps lose what would move the other. 'neither' is the selective attack."""

_LEFT = 1e-3  # share of a gradient that has to be left for its remainder to be a direction
_FIRST_STEP, _LAST_STEP = 0.5, 0.02  # shares of eps, the mean change of a pixel in one step


def step_direction(classifier: Tensor, detector: Tensor, fooled: Tensor, orthogonal: Orthogonal) -> Tensor:
    """Where to go down [N, C, H, W]: what serves the constraint that is not met yet, of l2 length sqrt(C H W).

    Bryniarski et al. 2021 (arXiv 2106.15023), section 4: while the classifier is not fooled its gradient counts, then
    the detector's. The one that is to be orthogonal loses its component along the other; where nothing is left of it
    (they are parallel) it is taken whole. Zero where the gradient is zero.

    Args:
        classifier: Gradients of the classifier's loss [N, C, H, W].
        detector: Gradients of the evidence, the same shape.
        fooled: Whether the classifier says the wrong label [N].
        orthogonal: Whose steps lose what would move the other.
    """
    of_classifier, of_detector = _unit(classifier.double().flatten(1)), _unit(detector.double().flatten(1))
    to_detector = _without(of_detector, of_classifier) if orthogonal == "detector" else of_detector
    to_classifier = _without(of_classifier, of_detector) if orthogonal == "classifier" else of_classifier
    step = _unit(torch.where(fooled[:, None], to_detector, to_classifier))
    return (math.sqrt(step.shape[1]) * step).to(classifier.dtype).reshape(classifier.shape)


def _orthogonal(orthogonal: Orthogonal, target: Target, task: Task) -> Found:
    """Restarts in turn with orthogonal and with selective steps, towards the likeliest wrong label.

    Of a thorough budget both are run, however few its restarts.
    """
    budget = alone(task.budget)
    search = Search(target.system, task.data, eps=task.eps)
    broken_by = {"clean image": search.offer(task.data.images)}
    forms: tuple[Orthogonal, Orthogonal] = (orthogonal, "neither")
    restarts = max(budget.restarts, len(forms)) if budget.thorough else budget.restarts
    for number in range(restarts):
        form = forms[number % 2]
        before = int(search.broken.sum())
        generator = torch.Generator().manual_seed(task.seed + 7919 * number)
        noise = torch.rand(task.data.images.shape, generator=generator)
        left = torch.from_numpy(~search.broken).nonzero().flatten()
        for rows in torch.split(left, budget.batch) if len(left) else ():
            _descend(form, target, task, search, rows, noise[rows], budget)
        name = "selective" if form == "neither" else f"orthogonal {form}"
        broken_by[name] = broken_by.get(name, 0) + int(search.broken.sum()) - before
    notes = {"steps": budget.steps, "restarts": restarts, "broken_by": broken_by}
    return Found(search.best, notes)


def _descend(
    orthogonal: Orthogonal,
    target: Target,
    task: Task,
    search: Search,
    rows: Tensor,
    noise: Tensor,
    budget: AdaptiveBudget,
) -> None:
    """Steps that shorten from half of eps along a cosine; what the system falls for is kept and attacked no more."""
    (answer, evidence), steps = surrogates_of(target), budget.steps
    region = search.region.rows(rows)
    labels = torch.from_numpy(task.data.labels)[rows]
    aim = likeliest_wrong(target.view, torch.from_numpy(search.best)[rows], labels, 0)
    points = region.random(noise)
    for i in range(steps):
        share = _LAST_STEP + (_FIRST_STEP - _LAST_STEP) * (1 + math.cos(math.pi * i / steps)) / 2
        step = step_direction(*_gradients(target, answer, evidence, points, aim), orthogonal)
        points = region.project(points - share * task.eps * step)
        if (i + 1) % budget.check_every == 0 or i + 1 == steps:
            keep = ~search.check(points, rows)
            if not keep.any():
                return
            rows, region, points, aim = rows[keep], region.rows(keep), points[keep], aim[keep]


def _gradients(
    target: Target, answer: AnswerSurrogate, evidence: EvidenceSurrogate, points: Tensor, aim: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(gradient of the answer's margin to the label aimed at, that of the evidence, whether it is that label)."""
    variable = points.detach().requires_grad_()
    with torch.enable_grad():
        c, m = target.view(variable, "exact", None)
        if m is None:
            raise ValueError(f"{target.name!r} has a test and no members")
        wrong, excess = targeted_margin(answer.scores(c, m), aim), evidence.excess(c, m, aim)
        (classifier,) = torch.autograd.grad(wrong.sum(), variable, retain_graph=True)
        (detector,) = torch.autograd.grad(excess.sum(), variable)
    return torch.nan_to_num(classifier), torch.nan_to_num(detector), answer.gap(c, m, aim).detach() < 0.0


def _without(vectors: Tensor, others: Tensor) -> Tensor:
    """Unit vectors [N, D] less their component along others; whole where next to nothing is left."""
    rest = vectors - (vectors * others).sum(1, keepdim=True) * others
    return torch.where(_length(rest) > _LEFT, rest, vectors)


def _unit(vectors: Tensor) -> Tensor:
    largest = vectors.abs().amax(1, keepdim=True)
    scaled = vectors / torch.where(largest > 0.0, largest, 1.0)
    return scaled / _length(scaled).clamp_min(1.0)


def _length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(1, keepdim=True).sqrt()


_FORMS: tuple[tuple[Orthogonal, str], ...] = (("classifier", "detector"), ("detector", "classifier"))

ATTACKS: tuple[RedTeamAttack, ...] = tuple(
    RedTeamAttack(
        name=f"orthogonal-{form}",
        run=partial(_orthogonal, form),
        goal="mislead",
        knows="everything",
        norm="linf",
        assumes=f"steps serve whichever of classifier and detector is not beaten yet; those on the {form} leave the "
        f"{other} as it is",
        source="Bryniarski et al. 2021, arXiv 2106.15023",
        needs_test=True,
        weight=3.0,
    )
    for form, other in _FORMS
)
