"""Defences whose robustness is known, some of which hide it from gradients.

Images are 1x8x8, two classes. The classifier is linear: class 1 where w (x - 1/2) > 0, all |w| equal, so that an l_inf
attack of radius eps moves the margin by eps |w|_1 at the most, and by that much exactly where no pixel meets 0 or 1.
Random corners of the ball move it by eps |w|_2 in the mean square, an eighth of that: gradients are worth having.
"""

from dataclasses import replace

import numpy as np
import torch

from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.purified import UnflaggingSystem
from s2ap_train.adaptive.systems import score_of
from s2ap_train.attacks.oblivious import pgd
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.checks.checks import Successes, probes_of, sanity_checks
from s2ap_train.redteam.checks.plausibility import plausibility_check
from s2ap_train.redteam.probes import at_radius, judge_probes
from s2ap_train.redteam.target import Target

EPS = 0.1
WEIGHT = torch.where(torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.5, -0.25, 0.25)
REACH = EPS * float(WEIGHT.abs().sum())  # 1.6: by how much an attack of radius EPS can move the margin
BUDGET = AdaptiveBudget(steps=20, cheap_steps=20, restarts=1, targets=1, thorough=False, square_queries=400)


def logits(images):
    score = (images - 0.5).flatten(1) @ WEIGHT
    return torch.stack([-score / 2, score / 2], dim=1)


def images_with_margins(*margins):
    """Grey images inside the box, labelled by their side, with the given margins of their own label."""
    labels = np.arange(len(margins)) % 2
    signed = torch.tensor([m if y == 1 else -m for m, y in zip(margins, labels, strict=True)])
    images = 0.5 + signed[:, None] * WEIGHT / WEIGHT.square().sum()
    return ImageSet(images.reshape(-1, 1, 8, 8).numpy().astype(np.float32), labels.astype(np.int64))


MARGINS = np.linspace(0.3, 3.0, 40)
DATA = images_with_margins(*MARGINS)
REACHABLE = MARGINS < REACH


def behind(front, name="planted"):
    """The linear classifier behind a step; the paths 'none' and 'identity' leave the step's gradient out."""

    def seen(images, path):
        if path == "none":
            return images
        return images + (front(images) - images).detach() if path == "identity" else front(images)

    return Target(
        name=name,
        system=UnflaggingSystem(lambda images: logits(front(images)).log_softmax(1)),
        view=lambda images, path, members: (logits(seen(images, path)).log_softmax(1), None),  # noqa: ARG005
        classify=lambda images: logits(images).log_softmax(1),
        purifies=True,
        features=(lambda images, path: (seen(images, path) - 0.5).flatten(1),),
    )


def honest():
    """Nothing in front: the margin is all there is."""
    return behind(lambda images: images, "honest")


def rounding(levels):
    """Pixels rounded to so many steps: nearly as wrong as without, with a gradient of 0 everywhere."""
    return behind(lambda images: (images * levels).round() / levels, f"{levels} levels")


def detached():
    """A step that autograd cannot see through, and that changes nothing."""
    return behind(lambda images: images.detach(), "detached")


def shattered():
    """A ripple 1e-4 high whose slope is a hundred times that of the image, up and down from pixel to pixel."""
    return behind(lambda images: images + 1e-4 * torch.sin(1e6 * images), "shattered")


class FlagsAll:
    """Calls every input adversarial: nothing is ever answered, so nothing is ever broken."""

    def __init__(self, system):
        self._system = system

    def __call__(self, images, labels):
        outcome = self._system(images, labels)
        return replace(outcome, flagged=np.ones(len(labels), dtype=bool), score=np.abs(outcome.score) + 1e-6)


def flags_everything():
    target = honest()
    return replace(target, name="flags everything", system=FlagsAll(target.system))


def _noise(target, task):
    corners = np.random.default_rng(task.seed).choice([-1.0, 1.0], size=task.data.images.shape)
    return Found((task.data.images + task.eps * corners).clip(0, 1).astype(np.float32))


def _square(target, task):
    images, labels = task.data.images, task.data.labels
    queries = task.budget.square_queries
    score = score_of(target.system)
    return Found(square_search(score, images, labels, eps=task.eps, queries=queries, seed=task.seed))


def _attack(name, run, knows):
    return RedTeamAttack(name, run, "mislead", knows, "linf", assumes="", source="")


ATTACKS = {
    attack.name: attack
    for attack in (
        _attack("noise", _noise, "nothing"),
        _attack("pgd", lambda t, task: Found(pgd(t.classify, task.data, eps=task.eps, seed=task.seed)), "classifier"),
        _attack(
            "square",
            _square,
            "answers",
        ),
        _attack("agreement", lambda t, task: at_radius(t, task, task.eps), "everything"),
    )
}


def checked(target, data=DATA, eps=EPS, budget=BUDGET):
    """(checks by name, images that no attack broke) after a small red team's work."""
    task = Task(data, eps, 0.0, 0, 0, budget)
    broken = {name: target.system(a.run(target, task).images, data.labels).success for name, a in ATTACKS.items()}
    clean = target.system(data.images, data.labels).success
    probes = probes_of(eps, budget, quick=True)
    probed = judge_probes(target.system, data, probes, {probe.name: probe(target, task) for probe in probes})
    kept = ~np.any([clean, *broken.values()], axis=0)
    plausibility = plausibility_check(kept, data="made up", eps=eps, measured={"linear": MARGINS > REACH / 2})
    checks = sanity_checks(Successes(ATTACKS, broken, clean), probed, plausibility=plausibility)
    return {check.name: check for check in checks}, kept


def masked(checks):
    return {name for name, check in checks.items() if check.masking and check.passed is False}
