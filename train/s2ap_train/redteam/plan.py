"""What is asked of an evaluation: attacks, budgets, time, and what else is measured."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Literal

from s2ap_defend.errors import RecipeError
from s2ap_train.adaptive.budget import AdaptiveBudget, Gradients
from s2ap_train.recipe import EvaluationRecipe, Recipe
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.catalogue import Preset, chosen_attacks

__all__ = ["SAMPLES", "Plan", "check_budgets", "deadline", "plan_of"]

SAMPLES: dict[Preset, int | None] = {"quick": 90, "standard": 150, "full": None}
"""Test images of each preset; None: all."""
_L2_SHARE = 1 / 3


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        name: The preset, or the attacks by name.
        attacks: In the order of the catalogue.
        budget: Their work.
        eps: l_inf budget, pixels in [0, 1].
        l2: l2 budget, pixels in [0, 1].
        pixels: l0 budget, positions.
        seed: Of all attacks.
        depth: How much else is measured: 'attacks', nothing; 'quick', the sanity checks that are cheap and three
            points of the eps curve; 'standard' or 'full', everything.
        time_limit: Minutes after which nothing new is begun, but for the search; None: no limit.
    """

    name: str
    attacks: tuple[RedTeamAttack, ...]
    budget: AdaptiveBudget
    eps: float
    l2: float
    pixels: int
    seed: int
    depth: Literal["attacks", "quick", "standard", "full"]
    time_limit: float | None = None


def plan_of(
    recipe: Recipe | EvaluationRecipe,
    positions: int,
    *,
    attacks: str | None = None,
    budget: Preset | None = None,
    eps: float | None = None,
    l2: float | None = None,
    pixels: int | None = None,
    seed: int | None = None,
    time_limit: float | None = None,
    gradients: Gradients | None = None,
    server: bool = False,
) -> Plan:
    """The plan of a recipe, changed as far as something else is asked for.

    Args:
        recipe: Gives preset, eps, l2, pixels, seed and gradients.
        positions: Numbers in one image, C * H * W.
        attacks: A preset, or names with commas between them.
        budget: Work of the attacker; by default that of the preset, 'quick' for attacks that are named.
        eps: l_inf budget, pixels in [0, 1].
        l2: l2 budget; where neither the recipe nor this says one, a third of the length of a change of eps everywhere.
        pixels: l0 budget, positions.
        seed: Of all attacks.
        time_limit: Minutes.
        gradients: What the descents' convolutions compute in.
        server: Whether there is a server, which a preset then attacks as well.

    Raises:
        RecipeError: If an attack is not known, or a preset is to attack with an eps of 0.
    """
    own = recipe.evaluation
    asked = next(text for text in (attacks, own.attacks, own.budget) if text is not None)
    preset, chosen = chosen_attacks(asked, server=server)
    work = budget or preset or (own.budget if attacks is None else "quick")
    eps = recipe.eps if eps is None else eps
    if preset is not None and eps == 0.0:
        raise RecipeError(f"eps is 0, which leaves {preset} nothing to attack with; give a larger one, or name attacks")
    if l2 is None:
        l2 = own.l2 if own.l2 is not None else eps * positions**0.5 * _L2_SHARE
    return Plan(
        name=asked,
        attacks=chosen,
        budget=replace(AdaptiveBudget.named(work), gradients=gradients or own.gradients),
        eps=eps,
        l2=l2,
        pixels=own.pixels if pixels is None else pixels,
        seed=recipe.seed if seed is None else seed,
        depth=preset or "attacks",
        time_limit=time_limit,
    )


def deadline(minutes: float | None, share: float) -> float | None:
    """Time at which a share of a time limit is over; None without one."""
    return None if minutes is None else time.time() + 60.0 * minutes * share


def check_budgets(eps: float, l2: float, pixels: int, positions: int) -> None:
    """Refuse budgets that are none.

    Raises:
        RecipeError: With the first that is out of range.
    """
    if not 0.0 <= eps <= 1.0:
        raise RecipeError(f"eps is {eps}; it is an l_inf budget in [0, 1] pixels, 8/255 is {8 / 255:.4f}")
    if not l2 >= 0.0 or not math.isfinite(l2):
        raise RecipeError(f"l2 is {l2}; it is a length in pixels of [0, 1], from 0")
    if not 0 <= pixels <= positions:
        raise RecipeError(
            f"pixels is {pixels}; it counts positions that may change, from 0 to the {positions} there are"
        )
