"""Attacked images on which the evidence of the members is fitted.

Several budgets and norms, on the classifier alone, on classifier and members together, and on the jury: a table fitted
on one oblivious attack would trust members that are fooled together with the classifier, and one fitted on small
changes of every pixel would distrust the members that notice a large change of few.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from s2ap_defend.types import Float32, Int64
from s2ap_train.attacks.catalogue import ATTACKS
from s2ap_train.attacks.joint import joint_network, jury_network
from s2ap_train.attacks.pgd import pgd
from s2ap_train.attacks.right_images import BATCH, Classifier
from s2ap_train.compute.memory import images_at_once
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.train import Components
from s2ap_train.models import Classifier as Network
from s2ap_train.recipe import Recipe

EPS_FACTORS = (0.5, 1.0, 1.5)
STEPS = 10
RELATIVE_STEP = 0.25
NEAR_AND_SPARSE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"deepfool": {}, "jsma": {"tries": 1}, "local-search": {"rounds": 20}}
)
"""Attacks that end just behind the boundary, or change few pixels, and what is cut of their cost."""
BY_QUERIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"square": {"queries": 300}, "one-pixel": {"population": 20, "generations": 15}, "local-search": {"rounds": 20}}
)
"""Those in their place where gradients of the classifier cannot be had: attacks that only ask it."""
_PROBES = {"local-search": {"probes": 32}}
"""What else is cut where images have more than `_SMALL` positions: every probe is an answer of the classifier."""
_SMALL = 16 * 16

COPIES = 3 * len(EPS_FACTORS) + len(NEAR_AND_SPARSE)
"""Attacked versions of every fitting image."""

Attack = Callable[[], list[Float32]]
"""Gives several attacked versions of the same images [N, C, H, W]."""

__all__ = [
    "COPIES",
    "as_copies",
    "attacked_alone",
    "attacked_for",
    "attacked_jury",
    "attacked_together",
    "copied_image",
    "fitting_attacks",
]


def fitting_attacks(recipe: Recipe, components: Components, splits: Splits) -> dict[str, Attack]:
    """By name the attacks on a recipe's networks; each gives attacked versions of the fitting images [N, C, H, W].

    Together `COPIES` times as many as the fitting split holds; not all get a wrong answer.
    """
    data, eps, seed = splits.fit, recipe.eps, recipe.seed
    classifier = components.classifier(recipe.classifier).model
    members = [member.model for member in components.members]
    jurors = [one for one, role in zip(members, components.roles, strict=True) if role == "juror"]
    return {
        "PGD on the classifier": partial(_pgd, classifier, data, eps=eps, seed=seed),
        **{
            name: partial(_near_or_sparse, name, settings, classifier, data, eps=eps, seed=seed)
            for name, settings in _near_and_sparse(classifier).items()
        },
        "PGD on classifier and members": partial(attacked_together, classifier, members, data, eps=eps, seed=seed),
        "PGD on the jury": partial(attacked_jury, jurors, data, eps=eps, seed=seed),
    }


def attacked_for(recipe: Recipe, components: Components, splits: Splits) -> ImageSet:
    """Fitting images under all of `fitting_attacks`, with their true labels."""
    attacks = fitting_attacks(recipe, components, splits)
    with one_thread():  # two threads in such small operators are many times slower where others compute, too
        return as_copies([images for attack in attacks.values() for images in attack()], splits.fit)


def as_copies(attacked: Sequence[Float32], data: ImageSet) -> ImageSet:
    """Attacked versions of the same images [N, C, H, W] as one set, one after another, with their true labels."""
    images = np.concatenate(attacked)
    return ImageSet(images, np.tile(data.labels, len(images) // len(data)))


def copied_image(copies: ImageSet, data: ImageSet) -> Int64:
    """Which image of `data` each of `as_copies` was made of, by number."""
    return np.arange(len(copies), dtype=np.int64) % len(data)


def attacked_alone(classifier: Classifier, data: ImageSet, *, eps: float, seed: int) -> list[Float32]:
    """PGD on the classifier at half, one and one and a half eps, then attacks of `NEAR_AND_SPARSE` [N, C, H, W].

    Where gradients of the classifier cannot be had, PGD climbs its surrogate's and those of `BY_QUERIES` come then.
    """
    near = (
        _near_or_sparse(name, settings, classifier, data, eps=eps, seed=seed)
        for name, settings in _near_and_sparse(classifier).items()
    )
    return [*_pgd(classifier, data, eps=eps, seed=seed), *(images for found in near for images in found)]


def attacked_together(
    classifier: Classifier, members: Sequence[Classifier], data: ImageSet, *, eps: float, seed: int
) -> list[Float32]:
    """PGD at the same budgets by an attacker that climbs classifier and members together."""
    return _pgd(joint_network(classifier, members), data, eps=eps, seed=seed + 1)


def attacked_jury(jurors: Sequence[Classifier], data: ImageSet, *, eps: float, seed: int) -> list[Float32]:
    """PGD at the same budgets by an attacker that climbs the jurors' mean probability."""
    return _pgd(jury_network(jurors), data, eps=eps, seed=seed + 2)


def _near_and_sparse(classifier: Classifier) -> Mapping[str, Mapping[str, Any]]:
    blind = isinstance(classifier, Network) and classifier.without_gradients
    return BY_QUERIES if blind else NEAR_AND_SPARSE


def _near_or_sparse(
    name: str, settings: Mapping[str, Any], classifier: Classifier, data: ImageSet, *, eps: float, seed: int
) -> list[Float32]:
    cut = _PROBES.get(name, {}) if math.prod(data.images.shape[2:]) > _SMALL else {}
    radius = {"eps": eps} if ATTACKS[name].budget == "eps" else {}
    return [ATTACKS[name](classifier, data.images, data.labels, seed=seed, **settings, **cut, **radius)]


def _pgd(network: Classifier, data: ImageSet, *, eps: float, seed: int) -> list[Float32]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    size = images_at_once(BATCH, x.shape)
    attacked = []
    for factor in EPS_FACTORS:
        radius = factor * eps
        start = x + radius * (2 * torch.rand(x.shape, generator=generator) - 1)
        found = [
            pgd(network, some, labels, eps=radius, steps=STEPS, step_size=RELATIVE_STEP * radius, start=begun)
            for some, labels, begun in zip(*(torch.split(one, size) for one in (x, y, start)), strict=True)
        ]
        attacked.append(np.asarray(torch.cat(found).numpy(), dtype=np.float32))
    return attacked
