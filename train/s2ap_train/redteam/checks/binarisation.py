"""The binarisation test: an adversarial image that is known to exist, for the attack to find.

Zimmermann, Brendel, Tramer and Carlini 2022, 'Increasing Confidence in Adversarial Robustness Evaluations' (arXiv
2206.13991). The last layers of the networks that give the answer are replaced, image by image, by one linear readout
that tells one point on the surface of the ball from points inside it. That point is then adversarial by construction:
an attack that finds nothing is a weak one, and its robust accuracy on the true networks is worth nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2ap_defend.types import Float32, Float64
from s2ap_train.adaptive.descent import descend
from s2ap_train.adaptive.regions import Region, ball_around
from s2ap_train.jobs import Found
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.probes import Probe
from s2ap_train.redteam.results import Check
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.paired import SIGNIFICANCE
from s2ap_train.twin.answer_features import Features

__all__ = ["FOUND", "binarisation", "binarisation_check", "binarisation_probe"]

FOUND = 0.95
"""Share of the planted images that an attack has to find, our choice. Every one exists, so a correct attack would find
all, as the paper argues; the rest is room for a descent that ends in a corner of a rugged but honest network."""

_COUNTS = ("planted", "found", "found_at_random")
_IMAGES = 30
_FEW_IMAGES = 12
_INNER = 100
_INNER_RADIUS = 0.95  # of eps, as in the authors' code
_HEIGHT = 0.5  # of the way from the highest inner point to the planted one: where the readout begins to say 'found'
_DRAWS = 3
_STARTS = 3  # descents: from a random point, from the image, from another random point
_ENOUGH = 10  # images with a readout; fewer say nothing


def binarisation_probe(*, quick: bool = False) -> Probe:
    """The run whose notes `binarisation_check` judges."""
    return Probe("binarisation", _FEW_IMAGES if quick else _IMAGES, binarisation, weight=7.0)


def binarisation(target: Target, task: Task, count: float) -> Found:
    """Plant an adversarial image for each of the first `count` images, and look for it by descent and at random.

    The attack is that of the figures: Auto-PGD through the exact path of the purifier, with the steps of the budget,
    from a random point, from the image, and from another random point. The random search takes as many points of the
    ball as the descents look at. Only the features of the networks that answer are asked, each of the image that it
    sees: what the vote and the test add to the attacker's task is not tested here. What lies behind the purifier and
    what lies past it are tested one after the other, since a gradient that one way hides the other would replace.

    Returns:
        The images where the last descent ended for those that were tried, the clean ones for the rest; in the notes, an
        entry a way, `planted` (images for which a readout could be fitted), `found` and `found_at_random` of them. They
        are empty where there are no features to read.
    """
    generator = torch.Generator().manual_seed(task.seed)
    images = task.data.images.copy()
    ways = [_on_one_way(features, task, int(count), generator, images) for features in target.features]
    return Found(images, {name: [way[i] for way in ways] for i, name in enumerate(_COUNTS)})


def binarisation_check(notes: Mapping[str, Any] | None) -> Check:
    """Judge what `binarisation` noted; None: it was not run.

    It fails where significantly fewer than `FOUND` of the planted images were found on one of the gradient's ways
    (exact binomial test, one-sided; the significance is shared between them): then the gradient is no guide, whatever
    the reason, and robust accuracy is no measure. Where a random search finds most of them as well, the images were no
    task for an attack and nothing is said.
    """
    name = "binarisation test"
    if notes is None or not notes["planted"]:
        reason = "it was not run" if notes is None else "no hidden features of what answers can be read"
        return Check(name, None, {}, f"could not be judged: {reason}", masking=True)
    ways = list(zip(*(notes[count] for count in _COUNTS), strict=True))
    checks = [_judged(name, *map(int, way), significance=SIGNIFICANCE / len(ways)) for way in ways]
    order = (False, None, True)
    return min(checks, key=lambda check: (order.index(check.passed), check.found.get("p_value", 1.0)))


def _judged(name: str, planted: int, found: int, at_random: int, *, significance: float) -> Check:
    """The check of one way."""
    from scipy import stats  # type: ignore[import-untyped]

    measured = {"planted": planted, "found": found, "found_at_random": at_random}
    if planted < _ENOUGH:
        meaning = f"could not be judged: a readout could be fitted for {planted} images only, {_ENOUGH} are needed"
        return Check(name, None, measured, meaning, masking=True)
    if 2 * at_random > planted:
        meaning = "could not be judged: a random search finds most of the planted images, too"
        return Check(name, None, measured, meaning, masking=True)
    p_value = float(stats.binomtest(found, planted, FOUND, alternative="less").pvalue)
    passed = p_value >= significance
    return Check(
        name,
        passed,
        measured | {"p_value": p_value},
        "the attack finds adversarial images that are known to exist for the networks that answer"
        if passed
        else "the attack misses adversarial images that are known to exist: its gradients lead nowhere",
        masking=True,
    )


def _on_one_way(
    features: Features, task: Task, count: int, generator: torch.Generator, images: Float32
) -> tuple[int, int, int]:
    """(planted, found, found at random) of the first `count` images; where descents ended is put into `images`."""
    clean = torch.from_numpy(task.data.images[:count])
    readouts = [_planted(features, x, task.eps, generator) for x in clean]
    rows = torch.tensor([row for row, readout in enumerate(readouts) if readout is not None], dtype=torch.int64)
    if not len(rows):
        return 0, 0, 0
    fitted = [readout for readout in readouts if readout is not None]
    score = _Score(features, torch.stack([w for w, _ in fitted]), torch.stack([b for _, b in fitted]))
    clean = clean[rows]
    ball = ball_around(clean, task.eps, "linf")
    found, best = _by_descent(score, clean, ball, task, generator)
    images[rows.numpy()] = best.numpy()
    at_random = _at_random(score, clean.shape, ball, _STARTS * task.budget.steps, generator)
    return len(rows), int(found.sum()), int(at_random.sum())


class _Score:
    """The readouts of some images: above 0 where one says 'found'.

    Args:
        features: Of the networks that answer.
        weights: Of each image's readout [N, D].
        offsets: Of each image's readout [N].
    """

    def __init__(self, features: Features, weights: Tensor, offsets: Tensor) -> None:
        self._features, self._weights, self._offsets = features, weights, offsets

    def __call__(self, points: Tensor, rows: Tensor) -> Tensor:
        """Scores [n] of points [n, C, H, W] for the images `rows` [n]."""
        value = (self._features(points, "exact") * self._weights[rows]).sum(1) + self._offsets[rows]
        return value + 0 * points.flatten(1).sum(1)  # features without gradient have gradient 0


def _planted(features: Features, image: Tensor, eps: float, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """(weights [D], offset) of a readout above 0 at one corner of the ball and below 0 inside; None: no luck."""
    lower, upper = (image - eps).clamp(0.0, 1.0), (image + eps).clamp(0.0, 1.0)
    for _ in range(_DRAWS):
        noise = 2 * torch.rand((_INNER, *image.shape), generator=generator) - 1
        inner = (image + _INNER_RADIUS * eps * noise).clamp(0.0, 1.0)
        corner = torch.where(torch.rand(image.shape, generator=generator) < 0.5, lower, upper)
        with torch.no_grad():
            found = features(torch.cat([corner[None], image[None], inner]), "exact").double().numpy()
        readout = _readout(found)
        if readout is not None:
            weights, offset = readout
            return torch.from_numpy(weights), torch.tensor(offset, dtype=torch.float32)
    return None


def _readout(features: Float64) -> tuple[Float32, float] | None:
    """Weights [D] and offset that tell the first row from all others; None where logistic regression cannot."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    middle, spread = features.mean(0), features.std(0)
    moving = spread > 1e-9 * max(1.0, float(np.abs(features).max()))
    if not moving.any():
        return None
    scaled = np.where(moving, (features - middle) / np.where(moving, spread, 1.0), 0.0)
    model = LogisticRegression(C=1e4, class_weight="balanced", max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # whether it separates them is looked at below
        model.fit(scaled, np.arange(len(scaled)) == 0)
    weights = np.where(moving, model.coef_[0] / np.where(moving, spread, 1.0), 0.0).astype(np.float32)
    scores = features.astype(np.float32) @ weights
    lowest, highest = float(scores[0]), float(scores[1:].max())
    scale = float(np.abs(scores).max())
    if not lowest - highest > 1e-4 * scale:  # float32 has to tell them apart, too
        return None
    level = highest + _HEIGHT * (lowest - highest)
    unit = lowest - highest
    return weights / np.float32(unit), -level / unit


def _by_descent(
    score: _Score, clean: Tensor, ball: Region, task: Task, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(found [N], the images with the best scores [N, C, H, W])."""
    everyone = torch.arange(len(clean))
    best, value = clean.clone(), torch.full((len(clean),), -torch.inf)

    def look(points: Tensor, rows: Tensor) -> Tensor:
        with torch.no_grad():
            reached = score(points, rows)
        better = reached > value[rows]
        value[rows[better]], best[rows[better]] = reached[better], points[better]
        return reached > 0

    for number in range(_STARTS):
        rows = everyone[value <= 0]
        if not len(rows):
            break
        start = clean if number == 1 else ball.random(torch.rand(clean.shape, generator=generator))
        _descend(score, look, start[rows], ball.rows(rows), rows, task)
    return value > 0, best


def _descend(
    score: _Score, look: Callable[[Tensor, Tensor], Tensor], start: Tensor, ball: Region, rows: Tensor, task: Task
) -> None:
    """Up the scores of the images `rows`."""
    descend(
        lambda points, local: -score(points, rows[local]),
        start,
        ball,
        steps=task.budget.steps,
        first_step=2.0 * task.eps,
        check=lambda points, local: look(points, rows[local]),
        check_every=task.budget.check_every,
    )


def _at_random(score: _Score, shape: tuple[int, ...], ball: Region, points: int, generator: torch.Generator) -> Tensor:
    """Whether one of so many random points of each ball is found by its readout [N]."""
    found = torch.zeros(shape[0], dtype=torch.bool)
    for _ in range(points):
        drawn = ball.random(torch.rand(shape, generator=generator))
        with torch.no_grad():
            found |= score(drawn, torch.arange(shape[0])) > 0
    return found
