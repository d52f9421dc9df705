"""A target that is attacked in moments: a classifier of half an image, alone or behind a purifier."""

from tests.train.toy_purifiers import EPS, Denoiser, upper_half

from s2ap_train.adaptive import AdaptiveBudget
from s2ap_train.adaptive.objectives import classifier_objective
from s2ap_train.adaptive.plans import Descent
from s2ap_train.adaptive.purified import UnflaggingSystem, variant_view
from s2ap_train.purifier import hadamard_bank
from s2ap_train.purifier.variants import off, purification
from s2ap_train.redteam.ablation.ablation import Effort
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.target import Target

BUDGET = AdaptiveBudget(steps=4, cheap_steps=6, restarts=1, targets=1)
LEAST = Effort(descents=1, steps=6)


def task_of(data, eps=EPS, **known):
    return Task(data=data, eps=eps, l2=1.0, pixels=1, seed=0, budget=BUDGET, known=known)


def toy(config=None, honest=True):
    """A classifier of the upper half, alone or behind a purifier whose denoiser reads the lower half."""
    variant = off() if config is None else purification("toy", Denoiser(honest), hadamard_bank(2, (1, 4, 4), 0), config)
    view = variant_view(variant, upper_half)
    return Target(
        name="toy",
        system=UnflaggingSystem(lambda images: view(images, "exact", 0)[0]),
        view=view,
        classify=lambda images: upper_half(images).log_softmax(1),
        purifies=config is not None,
        **({} if config is None else {"plan": through_the_purifier}),
    )


def through_the_purifier(budget):
    """One descent, of the kind that breaks what the purifier is attacked for here."""
    return [Descent(classifier_objective("cross_entropy"), "exact", "random")] * 4
