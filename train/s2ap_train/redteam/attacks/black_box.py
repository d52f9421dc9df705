"""Attacks that see answers only: the score of the defence, or nothing but whether it won; in process and over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Bool, Float32, Int64
from s2ap_train.adaptive.systems import System, score_of
from s2ap_train.attacks.budget import distortion, project
from s2ap_train.attacks.hopskipjump import Nearest, hop_skip_jump
from s2ap_train.attacks.one_pixel import pixel_search
from s2ap_train.attacks.square import square_search
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.attacks.candidates import into_ball
from s2ap_train.redteam.attacks.served_http import ServedSystem
from s2ap_train.redteam.target import Target

__all__ = ["ATTACKS", "decision_attack", "starting_images"]

POPULATION = 20
"""Candidates per image of the one-pixel attack; its queries are divided into generations."""
_NOISE_STARTS = 5


def decision_attack(
    system: System,
    data: ImageSet,
    *,
    norm: Literal["linf", "l2"],
    radius: float,
    queries: int,
    seed: int,
) -> tuple[Float32, dict[str, Any]]:
    """(Attacked images inside the ball, notes) of HopSkipJump on the system's decision: won or not, nothing else.

    Where the nearest image that won lies outside the ball, its projection is tried; where that does not win, or there
    was nothing to start from, the clean image is returned.

    Args:
        system: What is attacked.
        data: Clean images and true labels.
        norm: Of the ball.
        radius: Of the ball, pixels in [0, 1]; an image that won inside is sought no nearer.
        queries: Queries per image, at the most: one for the start and one for the projection are among them, the few
            about noise are not.
        seed: Of the walk.
    """

    def decision(images: Float32, rows: Int64) -> Bool:
        return system(images, data.labels[rows]).success

    starts = starting_images(system, data, norm=norm, seed=seed)
    nearest = hop_skip_jump(
        decision, data.images, starts, norm=norm, queries=max(1, queries - 2), seed=seed, radius=radius
    )
    inside = into_ball(nearest.images, data.images, radius, norm)
    won = decision(inside, np.arange(len(data)))
    inside[~won] = data.images[~won]
    return inside, _notes(nearest, norm, queries)


def starting_images(system: System, data: ImageSet, *, norm: Literal["linf", "l2"], seed: int) -> Float32:
    """An image for each from which a walk can begin [N, C, H, W]: far away, but the attacker wins with it.

    The nearest clean image that the system answers, does not flag, and gives another label than the attacked image's
    true one; else uniform noise that is answered so; else the clean image itself, which is no start.

    Args:
        system: What is attacked; it is asked once about every clean image, and a few times about noise.
        data: Clean images and true labels.
        norm: In which the nearest is meant.
        seed: Of the noise.
    """
    noise = np.random.default_rng(seed).random((_NOISE_STARTS, *data.images.shape[1:]), dtype=np.float32)
    pool = np.concatenate([data.images, noise])
    outcome = system(pool, np.concatenate([data.labels, np.zeros(_NOISE_STARTS, dtype=np.int64)]))
    answered = ~outcome.flagged & ~outcome.abstained
    starts = data.images.copy()
    for row, label in enumerate(data.labels):
        usable = np.flatnonzero(answered & (outcome.label != label))
        clean = usable[usable < len(data)]
        usable = clean if len(clean) else usable
        if len(usable):
            linf, l2, _ = distortion(data.images[row][None], pool[usable])
            starts[row] = pool[usable[(linf if norm == "linf" else l2).argmin()]]
    return starts


def _notes(nearest: Nearest, norm: str, queries: int) -> dict[str, Any]:
    started = np.isfinite(nearest.distance)
    return {
        "queries": queries,
        "mean_queries": float(nearest.queries.mean()) if len(nearest.queries) else 0.0,
        "started": int(started.sum()),
        f"median_{norm}_distance": float(np.median(nearest.distance[started])) if started.any() else None,
    }


def _square(system: System, task: Task) -> Found:
    images, queries = task.data.images, task.budget.square_queries
    found = square_search(score_of(system), images, task.data.labels, eps=task.eps, queries=queries, seed=task.seed)
    return Found(project(found, images, task.eps), {"queries": queries})


def _hop_skip_jump(norm: Literal["linf", "l2"], system: System, task: Task) -> Found:
    radius = task.eps if norm == "linf" else task.l2
    return Found(
        *decision_attack(
            system, task.data, norm=norm, radius=radius, queries=task.budget.decision_queries, seed=task.seed
        )
    )


def _one_pixel(target: Target, task: Task) -> Found:
    generations = max(1, task.budget.square_queries // POPULATION - 1)
    notes = {"population": POPULATION, "generations": generations, "pixels": task.pixels}
    if task.pixels < 1:
        return Found(task.data.images.copy(), notes)
    images = pixel_search(
        score_of(target.system),
        task.data.images,
        task.data.labels,
        seed=task.seed,
        pixels=task.pixels,
        population=POPULATION,
        generations=generations,
    )
    return Found(images, notes)


def _in_process(attack: Any, target: Target, task: Task) -> Found:  # noqa: ANN401 - a function of (system, task)
    found: Found = attack(target.system, task)
    return found


def _over_http(attack: Any, target: Target, task: Task) -> Found:  # noqa: ANN401 - a function of (system, task)
    with _server(target, task) as system:
        found: Found = attack(system, task)
        return Found(found.images, {**found.notes, "evidence": system.exposes_evidence, "requests": system.requests})


@contextmanager
def _server(target: Target, task: Task) -> Iterator[ServedSystem]:
    if task.server is None:
        raise RecipeError(
            "attacks over HTTP need a server of the same file; start one with s2ap-defend serve MODEL and give its "
            "address as host:port"
        )
    if target.test is None:
        raise RecipeError("a server answers for the whole file; attacks over HTTP have no bare classifier to attack")
    with ServedSystem(task.server, test=target.test) as system:
        system.check_serves(target.system, task.data)
        yield system


_SQUARE = "Andriushchenko et al. 2020, arXiv 1912.00049"
_HOP_SKIP_JUMP = "Chen et al. 2020, arXiv 1904.02144"

ATTACKS = (
    RedTeamAttack(
        name="square",
        run=partial(_in_process, _square),
        goal="mislead",
        knows="answers",
        norm="linf",
        assumes="a random search of square patches that asks the served file and sees its verdict, label and evidence",
        source=_SQUARE,
        weight=6.0,
    ),
    RedTeamAttack(
        name="hopskipjump",
        run=partial(_in_process, partial(_hop_skip_jump, "linf")),
        goal="mislead",
        knows="answers",
        norm="linf",
        assumes="a walk along the border of what wins, from an image of another class; sees label and flag only",
        source=_HOP_SKIP_JUMP,
        weight=10.0,
    ),
    RedTeamAttack(
        name="hopskipjump-l2",
        run=partial(_in_process, partial(_hop_skip_jump, "l2")),
        goal="mislead",
        knows="answers",
        norm="l2",
        assumes="a walk along the border of what wins, from an image of another class; sees label and flag only",
        source=_HOP_SKIP_JUMP,
        weight=10.0,
    ),
    RedTeamAttack(
        name="one-pixel-served",
        run=_one_pixel,
        goal="mislead",
        knows="answers",
        norm="l0",
        assumes="differential evolution of a few pixels that asks the served file and sees its verdict, label and "
        "evidence",
        source="Su et al. 2019, arXiv 1710.08864",
        weight=10.0,
    ),
    RedTeamAttack(
        name="square-http",
        run=partial(_over_http, _square),
        goal="mislead",
        knows="answers",
        norm="linf",
        assumes="as square, by requests to a running server; it sees evidence only if the server exposes it",
        source=_SQUARE,
        needs_test=True,
        needs="server",
        weight=8.0,
    ),
    RedTeamAttack(
        name="hopskipjump-http",
        run=partial(_over_http, partial(_hop_skip_jump, "linf")),
        goal="mislead",
        knows="answers",
        norm="linf",
        assumes="as hopskipjump, by requests to a running server; label and flag are all that it needs",
        source=_HOP_SKIP_JUMP,
        needs_test=True,
        needs="server",
        weight=12.0,
    ),
)
