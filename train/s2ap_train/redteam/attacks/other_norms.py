"""Attacks of the catalogue on the bare classifier, in every norm, and sparse ones that know the whole defence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from s2ap_defend.types import Float32
from s2ap_train.adaptive.objectives import mean_log_probability
from s2ap_train.attacks.called_layer import MIDDLE, CalledLayer
from s2ap_train.attacks.catalogue import ATTACKS as CATALOGUE
from s2ap_train.attacks.jsma import jsma
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.candidates import best_of, into_ball
from s2ap_train.redteam.attacks.white_box_search import skipped
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS"]

CW_C = 0.6
"""Weight of the misclassification in Carlini and Wagner's attack; further searches multiply it by ten."""
THETAS = (1.0, -1.0)
"""JSMA brightens values, and darkens them."""

_LONGEST_CW = 1000


def _features(name: Literal["ila", "fia"], target: Target, task: Task) -> Found:
    settings = {"eps": task.eps, "steps": task.budget.cheap_steps} if name == "fia" else {"eps": task.eps}
    network = CalledLayer(target.classify)
    if not network.layers(torch.from_numpy(task.data.images[:1])):
        return skipped(task, "no hidden layer of the classifier can be read")
    images = CATALOGUE[name](network, task.data.images, task.data.labels, seed=task.seed, layer=MIDDLE, **settings)
    return Found(images, {"made_on": "bare classifier", "layer": MIDDLE, **settings})


def _nearest(name: Literal["cw-l2", "deepfool"], target: Target, task: Task) -> Found:
    """The least change in l2; what lies outside the ball is brought to its surface."""
    settings: dict[str, Any] = {}
    if name == "cw-l2":
        settings = {"c": CW_C, "steps": min(_LONGEST_CW, 10 * task.budget.steps), "searches": 2}
    images = CATALOGUE[name](target.classify, task.data.images, task.data.labels, seed=task.seed, **settings)
    found = into_ball(images, task.data.images, task.l2, "l2")
    return Found(found, {"made_on": "bare classifier", **settings})


def _few_pixels(name: Literal["jsma", "one-pixel", "local-search"], target: Target, task: Task) -> Found:
    """Attacks that change at most `task.pixels` positions."""
    settings = _sparse_settings(task)[name]
    if task.pixels < 1:
        return Found(task.data.images.copy(), {"pixels": 0})
    images = CATALOGUE[name](target.classify, task.data.images, task.data.labels, seed=task.seed, **settings)
    return Found(images, {"made_on": "bare classifier", **settings})


def _sparse_settings(task: Task) -> Mapping[str, Mapping[str, Any]]:
    candidates = 100
    return {
        "jsma": {"fraction": _jsma_fraction(task)},
        "one-pixel": {
            "pixels": task.pixels,
            "population": candidates,
            "generations": max(1, 10 * task.budget.square_queries // candidates),
        },
        "local-search": {"t": 1, "rounds": task.pixels},  # one position a round, so that rounds bound what changes
    }


def _jsma_fraction(task: Task) -> float:
    """Of the values that may change: no more than positions may, since each may lie at a position of its own."""
    return task.pixels / math.prod(task.data.images.shape[1:])


def _joint_jsma(target: Target, task: Task) -> Found:
    """JSMA, brighter and darker, on classifier and members behind the purifier, with the exact gradient."""

    def network(images: Tensor) -> Tensor:
        return mean_log_probability(*target.view(images, "exact", None))

    settings: dict[str, Any] = {"fraction": _jsma_fraction(task), "tries": task.budget.targets}
    if task.pixels < 2:
        return Found(task.data.images.copy(), {"pixels": task.pixels, "values_of_a_pair": 2})
    found: dict[str, Float32] = {
        f"theta {theta:+g}": jsma(
            network,
            task.data.images,
            task.data.labels,
            seed=task.seed,
            theta=theta,
            batch_size=task.budget.batch,
            **settings,
        )
        for theta in THETAS
    }
    images, broken_by = best_of(target.system, task.data, found)
    return Found(images, {**settings, "broken_by": broken_by})


def _on_the_classifier(
    name: str,
    run: Callable[[Target, Task], Found],
    what: str,
    weight: float,
) -> RedTeamAttack:
    attack = CATALOGUE[name]
    return RedTeamAttack(
        name=name,
        run=run,
        goal="mislead",
        knows="classifier",
        norm=attack.norm,
        assumes=f"{what}; the attacker knows the bare classifier and nothing of the defence",
        source=attack.source,
        weight=weight,
    )


ATTACKS = (
    _on_the_classifier("ila", partial(_features, "ila"), "moves a hidden layer further along an attack's change", 0.3),
    _on_the_classifier("fia", partial(_features, "fia"), "takes away the hidden features that carry the label", 0.3),
    _on_the_classifier(
        "cw-l2", partial(_nearest, "cw-l2"), "the least l2 change that Adam finds, cut to the l2 budget", 2.0
    ),
    _on_the_classifier(
        "deepfool", partial(_nearest, "deepfool"), "steps to the nearest linearised border, cut to the l2 budget", 0.5
    ),
    _on_the_classifier("jsma", partial(_few_pixels, "jsma"), "brightens the pairs of values that matter most", 0.3),
    _on_the_classifier("one-pixel", partial(_few_pixels, "one-pixel"), "differential evolution of a few pixels", 0.5),
    _on_the_classifier(
        "local-search", partial(_few_pixels, "local-search"), "changes the pixels whose probe hurts the label most", 0.3
    ),
    RedTeamAttack(
        name="jsma-joint",
        run=_joint_jsma,
        goal="mislead",
        knows="everything",
        norm="l0",
        assumes="brightens or darkens the pairs of values that matter most to classifier and members together, by "
        "exact gradients through the purifier",
        source="Papernot et al. 2016, arXiv 1511.07528",
        weight=4.0,
    ),
)
