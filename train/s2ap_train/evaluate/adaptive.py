"""The attacker who knows everything: gradients through the exact unrolled purifier, classifier and members.

Several descents with different objectives, gradients and starts; after every few steps the iterates are put to the
system under attack itself, and per sample whatever succeeded there is kept. A sample that is broken is not attacked
further, so the budget goes to the survivors.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Float32, Int64
from s2ap_train.data import ImageSet
from s2ap_train.evaluate.descent import descend
from s2ap_train.evaluate.objectives import (
    EvidenceSurrogate,
    Objective,
    agreement_objective,
    classifier_objective,
    evidence_objective,
    targeted_agreement_objective,
)
from s2ap_train.evaluate.systems import System
from s2ap_train.twin import Twin

Path = Literal["none", "identity", "exact", "straight_through", "surrogate"]
"""How gradients pass the purifier: not asked, as identity, exactly, clamps ignored, or as its J-free form would."""
Start = Literal["random", "best"]
_WORTH_A_WORKER = 8  # samples; fewer are not split between threads

View = Callable[[Tensor, Path, int | None], tuple[Tensor, Tensor | None]]
"""What the attacker computes with: (images, path of the gradient, number of members) -> (c, m)."""


@dataclass(frozen=True)
class AdaptiveBudget:
    """Work of the attacks that adapt to what they attack.

    Attributes:
        steps: Gradient steps of one descent through the purifier.
        cheap_steps: Gradient steps of one descent that does not differentiate the purifier.
        restarts: How often the whole plan is run, each time from other random starts.
        targets: Wrong labels that are tried per sample, likeliest first.
        thorough: Run every descent of the plan; otherwise only those that have broken most per second.
        check_every: Steps between checks on the system itself.
        batch: Images differentiated at once; memory grows with it.
        square_queries: Queries of the Square attack per image.
    """

    steps: int = 50
    cheap_steps: int = 50
    restarts: int = 3
    targets: int = 3
    thorough: bool = True
    check_every: int = 5
    batch: int = 256
    square_queries: int = 1000

    def __post_init__(self) -> None:
        if min(self.steps, self.cheap_steps, self.restarts, self.targets, self.check_every, self.batch) < 1:
            raise ValueError(f"every number of an attack budget must be positive, got {self}")

    @classmethod
    def quick(cls) -> "AdaptiveBudget":
        """Enough for a demonstration and for tests; figures for a release need more."""
        return cls(steps=20, cheap_steps=30, restarts=1, targets=2, thorough=False, square_queries=200)

    @classmethod
    def standard(cls) -> "AdaptiveBudget":
        """The budget of figures that are quoted."""
        return cls()

    @classmethod
    def named(cls, name: Literal["quick", "standard"]) -> "AdaptiveBudget":
        """The preset of that name."""
        return cls.quick() if name == "quick" else cls.standard()


@dataclass(frozen=True)
class Descent:
    """One entry of an attack plan.

    Attributes:
        objective: What is minimised.
        path: How gradients pass the purifier; 'none' attacks as if it did not exist.
        start: A random point of the ball, or the best image so far.
        target: Rank of the wrong label that is aimed at, 0 the likeliest; None for objectives without target.
    """

    objective: Objective
    path: Path
    start: Start
    target: int | None = None

    @property
    def name(self) -> str:
        """For the report, such as 'agreement, exact'."""
        aim = "" if self.target is None else f", target {self.target + 1}"
        return f"{self.objective.name}, {self.path}{aim}"


@dataclass(frozen=True)
class AdaptiveResult:
    """Images [N, C, H, W] closest to success, and how many samples each descent broke that none before it had."""

    images: Float32
    broken_by: dict[str, int]


def defended_plan(twin: Twin, budget: AdaptiveBudget) -> list[Descent]:
    """Descents against the whole defence, cheap ones first."""
    evidence = evidence_objective(EvidenceSurrogate(twin.test, twin.device))
    sharp = evidence_objective(EvidenceSurrogate(twin.test, twin.device), weight=4.0)
    agreement = agreement_objective()
    asked_first = int(np.isfinite(twin.test.lower).argmax()) + 1 if np.isfinite(twin.test.lower).any() else 0
    plan = [
        Descent(agreement, "none", "random"),
        Descent(evidence, "none", "best", target=0),
        Descent(agreement, "exact", "random"),
        *(Descent(evidence, "exact", "best", target=rank) for rank in range(budget.targets)),
        Descent(classifier_objective("cross_entropy"), "straight_through", "random"),
    ]
    if not budget.thorough:
        return plan
    plan += [Descent(agreement, "identity", "best"), Descent(classifier_objective("dlr"), "exact", "random")]
    if 0 < asked_first < twin.member_count:
        plan.append(Descent(agreement_objective(asked_first), "exact", "best"))
    for rank in range(budget.targets):
        plan.append(Descent(targeted_agreement_objective(), "straight_through", "random", target=rank))
        plan.append(Descent(sharp, "exact", "random", target=rank))
    return plan


def bare_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Descents against the classifier alone."""
    plan = [Descent(classifier_objective(kind), "none", "random") for kind in ("cross_entropy", "dlr", "margin")]
    return plan + [Descent(targeted_agreement_objective(), "none", "random", rank) for rank in range(budget.targets)]


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
) -> AdaptiveResult:
    """Attack every image until the system fails on it or the plan is done.

    Args:
        system: What is attacked; it alone says what succeeded.
        view: Differentiable model of it.
        plan: Descents, in order.
        data: Images and true labels.
        eps: l_inf budget, pixels in [0, 1].
        budget: Steps, restarts and batch.
        seed: Of the random starts.
        candidates: Attacked images of other attacks, tried first and used as starts.
        workers: Threads that share the samples; `view` and `system` are called from all of them. Give torch one
            thread each (torch.set_num_threads(1)).
        on_progress: Called with descents done and in total.
    """
    search = _Search(system, data, eps)
    broken_by: dict[str, int] = {}
    for name, images in [("clean image", data.images), *(("other attack", images) for images in candidates)]:
        broken_by[name] = broken_by.get(name, 0) + search.offer(images)
    runs = [descent for _ in range(budget.restarts) for descent in plan]
    with ThreadPoolExecutor(workers) as pool:
        for number, descent in enumerate(runs):
            before = int(search.broken.sum())
            noise = _uniform(data.images.shape, seed + 7919 * number)
            parts = _parts(np.flatnonzero(~search.broken), workers, budget.batch)
            for _ in pool.map(lambda rows, d=descent, n=noise: search.run(d, view, rows, n[rows], budget), parts):
                pass
            broken_by[descent.name] = broken_by.get(descent.name, 0) + int(search.broken.sum()) - before
            if on_progress is not None:
                on_progress(number + 1, len(runs))
    return AdaptiveResult(search.best, broken_by)


def _parts(rows: Int64, workers: int, batch: int) -> list[Tensor]:
    """Rows in parts of at most `batch`, as many parts as there are workers where that leaves enough to do in each."""
    count = max(-(-len(rows) // batch), min(workers, len(rows) // _WORTH_A_WORKER), 1)
    return [torch.from_numpy(part) for part in np.array_split(rows, count) if len(part)]


def _uniform(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class _Search:
    """Best attacked image of every sample so far, as the system judges it."""

    def __init__(self, system: System, data: ImageSet, eps: float) -> None:
        self._system = system
        self._labels = data.labels
        self._eps = eps
        self._images = torch.from_numpy(data.images)
        self._lower = (self._images - eps).clamp(0.0, 1.0)
        self._upper = (self._images + eps).clamp(0.0, 1.0)
        self.best = data.images.copy()
        self.score = np.full(len(data), np.inf)

    @property
    def broken(self) -> np.ndarray:
        return np.asarray(self.score < 0.0)

    def offer(self, images: Float32) -> int:
        """Try one image for every sample; returns how many more are broken."""
        before = int(self.broken.sum())
        self._check(torch.from_numpy(images), torch.arange(len(images)))
        return int(self.broken.sum()) - before

    def run(self, descent: Descent, view: View, rows: Tensor, noise: Tensor, budget: AdaptiveBudget) -> None:
        """One descent for some rows; runs of other rows may go on beside it."""
        labels = torch.from_numpy(self._labels)[rows]
        best = torch.from_numpy(self.best)[rows]
        members = descent.objective.members
        targets = labels
        if descent.target is not None:
            targets = _likeliest_wrong(view, best, labels, descent.target)

        def loss(points: Tensor, local: Tensor) -> Tensor:
            c, m = view(points, descent.path, members)
            return descent.objective.loss(c, m, labels[local], targets[local])

        lower, upper = self._lower[rows], self._upper[rows]
        start = best
        if descent.start == "random":
            start = lower + (upper - lower) * noise
        descend(
            loss,
            start,
            lower,
            upper,
            steps=budget.cheap_steps if descent.path in {"none", "identity"} else budget.steps,
            first_step=self._eps * (2.0 if descent.start == "random" else 0.5),
            check=lambda points, local: self._check(points, rows[local]),
            check_every=budget.check_every,
        )

    def _check(self, points: Tensor, rows: Tensor) -> Tensor:
        index, images = rows.numpy(), points.numpy()
        score = self._system(images, self._labels[index]).score
        better = score < self.score[index]
        self.score[index[better]] = score[better]
        self.best[index[better]] = images[better]
        return torch.from_numpy(score < 0.0)


def _likeliest_wrong(view: View, images: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The wrong label that classifier and members together hold likeliest, second likeliest, ... [N]."""
    with torch.no_grad():
        c, m = view(images, "exact", None)
    mean = c if m is None else (c + m.mean(0)) / 2
    order = mean.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    return order[:, min(rank, mean.shape[1] - 2)]


def twin_view(twin: Twin) -> View:
    """The attacker's view of the whole defence."""

    def view(images: Tensor, path: Path, members: int | None) -> tuple[Tensor, Tensor | None]:
        if path == "surrogate":
            raise ValueError("the file holds no J-free form of its purifier; attack it by another path")
        purified = images if path == "none" else twin.purify(images, path)
        return twin.classify(purified), None if members == 0 else twin.members(purified, members)

    return view


def bare_view(twin: Twin) -> View:
    """The attacker's view of the bare classifier."""
    return lambda images, path, members: (twin.classify(images), None)  # noqa: ARG005
