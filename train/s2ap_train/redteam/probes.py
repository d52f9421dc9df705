"""Further runs that curves and sanity checks need: one objective at several radii, steps and starts, each on its own.

No probe starts from what another found: an attack that is handed the answer shows nothing about itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.objectives import agreement_objective, evidence_objective, margin
from s2ap_train.adaptive.plans import surrogates
from s2ap_train.adaptive.search import Descent, adaptive_attack
from s2ap_train.adaptive.systems import System
from s2ap_train.attacks.budget import project
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.target import Target

__all__ = [
    "Kind",
    "Probe",
    "Probed",
    "at_radius",
    "gradients",
    "judge_probes",
    "of_other_classes",
    "with_restart",
    "with_steps",
]

Kind = Literal["eps", "steps", "restarts", "other classes", "gradients", "binarisation"]
"""What varies between the probes of one curve, or what is measured."""

_OFFERED = 12  # clean images of other classes that are tried for each image
_DIFFERENTIATED = 64


@dataclass(frozen=True)
class Probe:
    """One further run, for a worker: it travels to other processes by the name of its function.

    Attributes:
        kind: What it belongs to.
        at: Where on its curve: eps in pixels, steps, the number of the restart; of a measurement its size.
        run: (target, task, at) -> what was found.
        weight: Its time, roughly, against others.
    """

    kind: Kind
    at: float
    run: Callable[[Target, Task, float], Found]
    weight: float = 1.0

    @property
    def name(self) -> str:
        """Unique among probes, such as 'eps 0.15'."""
        return f"{self.kind} {self.at:g}"

    def __call__(self, target: Target, task: Task) -> Found:
        """Run it; `task.known` is not used."""
        return self.run(target, task, self.at)


@dataclass(frozen=True)
class Probed:
    """What a probe found and how the system answered.

    Attributes:
        probe: Which one.
        broken: Images with which the attacker won [N].
        right: Images whose final label was right [N], flagged or not.
        notes: Of the probe.
    """

    probe: Probe
    broken: Bool
    right: Bool
    notes: Mapping[str, Any] = field(default_factory=dict)


def judge_probes(system: System, data: ImageSet, probes: Sequence[Probe], found: Mapping[str, Found]) -> list[Probed]:
    """Ask the system about what the probes found; those that did not run are left out.

    Args:
        system: What was attacked.
        data: The clean images that the probes were given.
        probes: The probes.
        found: By the name of the probe.
    """
    judged = []
    for probe in probes:
        if probe.name in found:
            outcome = system(found[probe.name].images, data.labels)
            judged.append(Probed(probe, outcome.success, outcome.right(data.labels), found[probe.name].notes))
    return judged


def at_radius(target: Target, task: Task, eps: float) -> Found:
    """Agreement of classifier and members through the exact path, inside an l_inf ball of radius `eps`.

    A thorough budget adds, where there is a test, its evidence towards the likeliest wrong label.
    """
    plan = [_agreement()]
    if target.test is not None and task.budget.thorough:
        evidence = evidence_objective(*surrogates(target.test))
        plan.append(Descent(evidence, "exact", "best", target=0))
    return _descended(target, replace(task, eps=eps, budget=replace(task.budget, restarts=1)), plan)


def with_steps(target: Target, task: Task, steps: float) -> Found:
    """One objective, agreement, through the exact path with so many steps; one step is the single-step attack.

    The random point that it starts from is the same for every number of steps, and the first step crosses the ball.
    """
    budget = replace(task.budget, steps=int(steps), cheap_steps=int(steps), restarts=1)
    return _descended(target, replace(task, budget=budget), [_agreement()])


def with_restart(target: Target, task: Task, number: float) -> Found:
    """One objective, agreement, through the exact path, from the random point of that number."""
    seed = (task.seed + 15_485_863 * (int(number) + 1)) % 2**31
    return with_steps(target, replace(task, seed=seed), task.budget.steps)


def of_other_classes(target: Target, task: Task, eps: float) -> Found:
    """The best of some clean images of other classes, moved into the ball of radius `eps`; 1 leaves them as they are.

    Whoever may draw any image may hand in one of another class. What the system answers rightly and does not flag is
    offered first, so that this fails only where hardly any image of another class is answered.
    """
    images, labels = task.data.images, task.data.labels
    outcome = target.system(images, labels)
    accepted = outcome.right(labels) & ~outcome.flagged
    offers = _offers(labels, accepted, np.random.default_rng(task.seed))  # [offers, N]
    best, score = images.copy(), outcome.score.copy()
    for row in offers:
        tried = project(images[row], images, eps)
        answers = target.system(tried, labels)
        better = answers.score < score
        best[better], score[better] = tried[better], answers.score[better]
    return Found(best, {"offers": len(offers)})


def gradients(target: Target, task: Task, count: float) -> Found:
    """Whether the first `count` images have gradients: of the classifier's margin, and of every member's.

    The margin of the log-probabilities has a slope wherever the logits have one, however sure the network is. The
    gradient takes the exact path through the purifier. The images are handed back as they are; the notes say how many
    there were (`images`), and how many have a gradient that is 0 in every pixel, or not a number: `without` of the
    classifier, `members_without` of each member. `lent`: the classifier's gradient is that of the members.
    """
    chosen = task.data.subset(slice(int(count)))
    without, members = 0, np.zeros(target.members, dtype=np.int64)
    for start in range(0, len(chosen), _DIFFERENTIATED):
        batch = chosen.subset(slice(start, start + _DIFFERENTIATED))
        x, y = torch.from_numpy(batch.images).requires_grad_(), torch.from_numpy(batch.labels)
        with torch.enable_grad():
            c, m = target.view(x, "exact", None)
            answers = [c, *([] if m is None else m)]
            gone = [_without_gradient(margin(answer, y), x) for answer in answers]
        without += gone[0]
        members += np.array(gone[1:], dtype=np.int64)
    notes = {"images": len(chosen), "without": without, "members_without": members.tolist(), "lent": target.lent}
    return Found(task.data.images, notes)


def _agreement() -> Descent:
    return Descent(agreement_objective(), "exact", "random")


def _descended(target: Target, task: Task, plan: Sequence[Descent]) -> Found:
    result = adaptive_attack(
        target.system, target.view, plan, task.data, eps=task.eps, budget=task.budget, seed=task.seed
    )
    return Found(_kept_inside(result.images, task), {"broken_by": result.broken_by})


def _kept_inside(images: Float32, task: Task) -> Float32:
    return project(images, task.data.images, task.eps)


def _offers(labels: Int64, accepted: Bool, generator: np.random.Generator) -> Int64:
    """Rows of images of another class for each image [offers, N], accepted ones first; its own where none is left."""
    chosen = []
    for row, label in enumerate(labels):
        others = generator.permutation(np.flatnonzero(labels != label))
        ordered = np.concatenate([others[accepted[others]], others[~accepted[others]]])[:_OFFERED]
        chosen.append(np.pad(ordered, (0, _OFFERED - len(ordered)), constant_values=row))
    return np.array(chosen, dtype=np.int64).reshape(len(labels), _OFFERED).T


def _without_gradient(values: Tensor, x: Tensor) -> int:
    if not values.requires_grad:
        return len(x)
    (gradient,) = torch.autograd.grad(values.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)
    gone = (torch.nan_to_num(gradient, posinf=0.0, neginf=0.0) == 0).flatten(1).all(1)
    return int(gone.sum())
