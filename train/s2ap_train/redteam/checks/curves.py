"""How the figures move with the attacker's means: radius, steps and restarts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.types import Bool, Int64
from s2ap_train.adaptive.search import AdaptiveBudget
from s2ap_train.redteam.probes import Probe, Probed, at_radius, of_other_classes, with_restart, with_steps
from s2ap_train.redteam.results import CurvePoint, Curves
from s2ap_train.statistics.figures import clopper_pearson
from s2ap_train.statistics.outcome import Outcome

__all__ = ["EPS_FACTORS", "STEPS", "curve_probes", "curves", "eps_grid"]

EPS_FACTORS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Radii of the curve, as factors of eps; the whole box, 1, follows them."""
STEPS = (1, 2, 5, 10, 20, 50, 100)
"""Steps of the step curve."""


def eps_grid(eps: float, *, quick: bool = False) -> tuple[float, ...]:
    """Radii of the curve in pixels, ascending: eps by its factors, and 1; half and double eps and 1 for a quick one.

    Raises:
        RecipeError: Unless 0 < eps <= 1; there is no curve around 0.
    """
    if not 0.0 < eps <= 1.0:
        raise RecipeError(f"eps is {eps}; curves and checks need a radius above 0, at most 1 pixel")
    factors = (0.5, 2.0) if quick else EPS_FACTORS
    return (*sorted({round(eps * factor, 6) for factor in factors if eps * factor < 1.0}), 1.0)


def curve_probes(eps: float, budget: AdaptiveBudget, *, quick: bool = False) -> tuple[Probe, ...]:
    """The runs that the curves are made of; each is independent of all others.

    Args:
        eps: l_inf budget, pixels in [0, 1].
        budget: Steps of the runs, and the number of restarts of the full evaluation.
        quick: Three radii and the whole box, few steps, no restarts: what the sanity checks cannot do without.

    Raises:
        RecipeError: Unless 0 < eps <= 1.
    """
    per_step = 1 / 8 if quick else 1 / 40  # of the weight: where descents stop early, one that does not costs more
    steps = sorted({1, max(1, budget.steps // 4), budget.steps}) if quick else STEPS
    restarts = 0 if quick else max(3, budget.restarts)
    radii = [Probe("eps", at, at_radius, weight=budget.steps * per_step) for at in eps_grid(eps, quick=quick)]
    return (
        *radii,
        Probe("other classes", 1.0, of_other_classes, weight=0.5),
        *(Probe("steps", at, with_steps, weight=at * per_step) for at in steps),
        *(Probe("restarts", number, with_restart, weight=budget.steps * per_step) for number in range(1, restarts + 1)),
    )


def curves(
    clean: Outcome, labels: Int64, probed: Sequence[Probed], *, found: Sequence[tuple[float, Outcome]] = ()
) -> Curves:
    """The curves of what the probes found: at each point, what nothing up to there has broken.

    At a radius that is everything that was found inside it, so the curve of eps falls by construction and ends, with
    clean images of other classes, at 1 pixel; whether each run alone finds as much is for the checks to say.

    Args:
        clean: Answers to the clean images: the point at radius, steps or restarts 0.
        labels: True labels [N].
        probed: Probes on the same images.
        found: Answers to what else was found inside a radius (its pixels, the answers), such as by the attacks of the
            evaluation: with them the curve passes through its figure.
    """
    start = (0.0, clean.success, clean.right(labels))
    more = [(at, outcome.success, outcome.right(labels)) for at, outcome in found]
    eps, steps, restarts = (
        _curve([start, *((one.probe.at, one.broken, one.right) for one in probed if one.probe.kind in kinds), *others])
        for kinds, others in ((("eps", "other classes"), more), (("steps",), []), (("restarts",), []))
    )
    return Curves(samples=len(labels), eps=eps, steps=steps, restarts=restarts)


def _curve(points: Sequence[tuple[float, Bool, Bool]]) -> tuple[CurvePoint, ...]:
    if len(points) < 2:
        return ()
    curve = []
    for at in sorted({at for at, _, _ in points}):
        broken = np.any([lost for place, lost, _ in points if place <= at], axis=0)
        right = np.all([kept for place, _, kept in points if place <= at], axis=0)
        survived = int((~broken).sum())
        curve.append(
            CurvePoint(
                at=at,
                robust_accuracy=survived / len(broken),
                interval=clopper_pearson(survived, len(broken)),
                label_accuracy=float(right.mean()),
            )
        )
    return tuple(curve)
