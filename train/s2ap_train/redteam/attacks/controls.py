"""Controls: noise and common corruptions. What fails here needs no attacker; an attack weaker than noise is none."""

from __future__ import annotations

from functools import partial

import numpy as np

from s2ap_defend.types import Float32
from s2ap_train.attacks.budget import project
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.candidates import best_of
from s2ap_train.redteam.attacks.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "NOISE_DRAWS", "noisy"]

NOISE_DRAWS = 4
"""Draws of noise from the corners of the ball, and as many from all of it."""


def noisy(images: Float32, *, eps: float, seed: int, corners: bool) -> Float32:
    """Images [N, C, H, W] moved by independent noise within eps, and cut to [0, 1].

    Args:
        images: Clean images, float32 [N, C, H, W] in [0, 1].
        eps: l_inf budget, pixels in [0, 1].
        seed: Of the noise.
        corners: Whether each value moves by eps, up or down, instead of by a uniform amount in [-eps, eps].
    """
    noise = np.random.default_rng(seed).uniform(-1.0, 1.0, images.shape)
    moved = images + eps * (np.sign(noise) if corners else noise)
    return project(moved.astype(np.float32).clip(0.0, 1.0), images, eps)


def _noise(target: Target, task: Task) -> Found:
    draws = {
        f"{kind} {draw + 1}": noisy(
            task.data.images, eps=task.eps, seed=task.seed + 2 * draw + corners, corners=bool(corners)
        )
        for draw in range(NOISE_DRAWS)
        for kind, corners in (("corner", 1), ("uniform", 0))
    }
    images, broken_by = best_of(target.system, task.data, draws)
    return Found(images, {"draws": len(draws), "broken_by": broken_by})


def _corruption(name: str, target: Target, task: Task) -> Found:
    versions = {
        f"severity {severity}": corrupted(name, task.data.images, severity=severity, seed=task.seed + severity)
        for severity in SEVERITIES
    }
    images, broken_by = best_of(target.system, task.data, versions)
    return Found(images, {"severities": list(SEVERITIES), "broken_by": broken_by})


_IN_WORDS = {
    "gaussian-noise": "gaussian noise on every pixel",
    "blur": "a gaussian blur",
    "contrast": "lower contrast",
    "brightness": "more light",
    "jpeg": "JPEG compression",
}

ATTACKS = (
    RedTeamAttack(
        name="noise",
        run=_noise,
        goal="mislead",
        knows="nothing",
        norm="linf",
        assumes=f"no attacker: the worst of {2 * NOISE_DRAWS} draws of random noise, half of them at the corners of "
        "the ball",
        source="Carlini et al. 2019, arXiv 1902.06705",
        weight=0.3,
    ),
    *(
        RedTeamAttack(
            name=name,
            run=partial(_corruption, name),
            goal="mislead",
            knows="nothing",
            norm=None,
            assumes=f"no attacker: {_IN_WORDS[name]}, the worst of severities 1 to 5; keeps to no budget",
            source="Hendrycks and Dietterich 2019, arXiv 1903.12261",
            weight=0.3,
        )
        for name in CORRUPTIONS
    ),
)
