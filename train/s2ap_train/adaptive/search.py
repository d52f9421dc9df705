"""The attacker that knows everything: gradients through the exact unrolled purifier, classifier and members.

Several descents with different objectives, gradients and starts; after every few steps the iterates are put to the
system under attack itself, and per sample whatever succeeded there is kept. A sample that is broken is not attacked
further, so the budget goes to the survivors.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.descent import Loss, descend
from s2ap_train.adaptive.goals import Goal, scores
from s2ap_train.adaptive.plans import Descent, Start, bare_plan, defended_plan
from s2ap_train.adaptive.regions import Norm, Region, ball_around
from s2ap_train.adaptive.systems import System
from s2ap_train.adaptive.views import View, bare_view, twin_view
from s2ap_train.compute.bfloat16 import in_bfloat16
from s2ap_train.data import ImageSet

__all__ = [
    "AdaptiveBudget",
    "AdaptiveResult",
    "Descent",
    "Search",
    "Start",
    "View",
    "adaptive_attack",
    "bare_plan",
    "bare_view",
    "defended_plan",
    "likeliest_wrong",
    "twin_view",
]

_WORTH_A_WORKER = 8  # samples; fewer are not split between threads


@dataclass(frozen=True)
class AdaptiveResult:
    """Images [N, C, H, W] closest to success, and how many samples each descent broke that none before it had."""

    images: Float32
    broken_by: dict[str, int]


def adaptive_attack(
    system: System,
    view: View,
    plan: Sequence[Descent],
    data: ImageSet,
    *,
    eps: float,
    budget: AdaptiveBudget,
    seed: int,
    candidates: Sequence[Float32] = (),
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    norm: Norm = "linf",
    goal: Goal = "mislead",
) -> AdaptiveResult:
    """Attack every image until the attacker has what it wants of it or the plan is done.

    Args:
        system: What is attacked; it alone says what succeeded.
        view: Differentiable model of it.
        plan: Descents, in order.
        data: Images and true labels.
        eps: Budget in the norm, pixels in [0, 1].
        budget: Steps, restarts and batch.
        seed: Of the random starts.
        candidates: Attacked images of other attacks, tried first and used as starts.
        workers: Threads that share the samples; `view` and `system` are called from all of them. Give torch one
            thread each (torch.set_num_threads(1)).
        on_progress: Called with descents done and in total.
        norm: Of the budget.
        goal: What the attacker wants; images are kept by how near they come to it.
    """
    search = Search(system, data, eps=eps, norm=norm, goal=goal)
    broken_by: dict[str, int] = {}
    for name, images in [("clean image", data.images), *(("other attack", images) for images in candidates)]:
        broken_by[name] = broken_by.get(name, 0) + search.offer(images)
    runs = [descent for _ in range(budget.restarts) for descent in plan]
    with ThreadPoolExecutor(workers) as pool:
        for number, descent in enumerate(runs):
            before = int(search.broken.sum())
            noise = _uniform(data.images.shape, seed + 7919 * number)
            batches = _batches(np.flatnonzero(~search.broken), workers, budget.batch)
            for _ in pool.map(lambda rows, d=descent, n=noise: search.run(d, view, rows, n[rows], budget), batches):
                pass
            broken_by[descent.name] = broken_by.get(descent.name, 0) + int(search.broken.sum()) - before
            if on_progress is not None:
                on_progress(number + 1, len(runs))
    return AdaptiveResult(search.best, broken_by)


class Search:
    """Best attacked image of every sample so far, as the system judges it.

    Args:
        system: What is attacked.
        data: Images and true labels.
        eps: Budget in the norm, pixels in [0, 1].
        norm: Of the budget.
        goal: What the attacker wants.

    Attributes:
        best: The image of every sample that is nearest to the goal [N, C, H, W]; at first the clean one.
        score: How far it is from the goal [N]; negative: it is there.
        region: What attacked images stay in.
    """

    def __init__(
        self, system: System, data: ImageSet, *, eps: float, norm: Norm = "linf", goal: Goal = "mislead"
    ) -> None:
        self._system, self._goal = system, goal
        self._labels = data.labels
        self._eps = eps
        self.region: Region = ball_around(torch.from_numpy(data.images), eps, norm)
        self.best = data.images.copy()
        self.score = np.full(len(data), np.inf)

    @property
    def broken(self) -> Bool:
        """Samples where the attacker has what it wants [N]."""
        return np.asarray(self.score < 0.0)

    def offer(self, images: Float32) -> int:
        """Try one image for every sample; returns how many more are broken."""
        before = int(self.broken.sum())
        self.check(torch.from_numpy(images), torch.arange(len(images)))
        return int(self.broken.sum()) - before

    def run(self, descent: Descent, view: View, rows: Tensor, noise: Tensor, budget: AdaptiveBudget) -> None:
        """One descent for some rows; runs of other rows may go on at the same time."""
        labels = torch.from_numpy(self._labels)[rows]
        members = descent.objective.members
        targets = labels
        if descent.target is not None:
            best = torch.from_numpy(self.best)[rows]
            targets = likeliest_wrong(view, best, labels, descent.target, by=descent.objective.aims)

        def loss(points: Tensor, local: Tensor) -> Tensor:
            with in_bfloat16(points.device, wanted=budget.gradients == "bfloat16"):
                c, m = view(points, descent.path, members)
            return descent.objective.loss(c, m, labels[local], targets[local])

        steps = budget.cheap_steps if descent.path in {"none", "identity"} else budget.steps
        start = noise if descent.start == "random" else None
        self.descend(loss, rows, noise=start, steps=steps, check_every=budget.check_every)

    def descend(self, loss: Loss, rows: Tensor, *, noise: Tensor | None, steps: int, check_every: int) -> None:
        """Minimise a loss for some rows; what is seen on the way is put to the system.

        Args:
            loss: Of points [n, C, H, W] and the places of their samples in `rows` [n].
            rows: Samples [n].
            noise: Uniform in [0, 1), of the random start [n, C, H, W]; None: start from the best image so far.
            steps: Gradient steps.
            check_every: Steps between checks on the system.
        """
        region = self.region.rows(rows)
        start = torch.from_numpy(self.best)[rows] if noise is None else region.random(noise)
        descend(
            loss,
            start,
            region,
            steps=steps,
            first_step=self._eps * (0.5 if noise is None else 2.0),
            check=lambda points, local: self.check(points, rows[local]),
            check_every=check_every,
        )

    def check(self, points: Tensor, rows: Tensor) -> Tensor:
        """Put points [n, C, H, W] of some samples [n] to the system and keep the best; True where it is beaten [n]."""
        index, images = rows.numpy(), points.numpy()
        score = scores(self._goal, self._system(images, self._labels[index]), self._labels[index])
        better = score < self.score[index]
        self.score[index[better]] = score[better]
        self.best[index[better]] = images[better]
        return torch.from_numpy(score < 0.0)


def likeliest_wrong(
    view: View,
    images: Tensor,
    labels: Tensor,
    rank: int,
    *,
    by: Callable[[Tensor, Tensor | None], Tensor] | None = None,
) -> Tensor:
    """The wrong label that classifier and members together hold likeliest, second likeliest, ... [N].

    Args:
        view: What the attacker computes with.
        images: Images [N, C, H, W].
        labels: True labels [N].
        rank: 0 the likeliest; the last wrong label where there are not so many.
        by: What decides instead, such as the answer: log-probabilities of classifier and members -> scores [N, K].
    """
    with torch.no_grad():
        c, m = view(images, "exact", None)
        scores = _together(c, m) if by is None else by(c, m)
    order = scores.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    return order[:, min(rank, scores.shape[1] - 2)]


def _together(c: Tensor, m: Tensor | None) -> Tensor:
    return c if m is None else (c + m.mean(0)) / 2


def _batches(rows: Int64, workers: int, batch: int) -> list[Tensor]:
    """Rows in batches of at most `batch`, as many as there are workers where that leaves enough to do in each."""
    count = max(-(-len(rows) // batch), min(workers, len(rows) // _WORTH_A_WORKER), 1)
    return [torch.from_numpy(one) for one in np.array_split(rows, count) if len(one)]


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))
