"""How long the attacks of a hardening will take, and which of them are done already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from s2ap_defend.sequential import Answer
from s2ap_train.adaptive.goals import Goal
from s2ap_train.adaptive.plans import defended_plan
from s2ap_train.data import Splits
from s2ap_train.hardening.decision_choice.defence import Networks
from s2ap_train.hardening.decision_choice.rules import beginning, expected
from s2ap_train.hardening.decision_choice.search import attack_budget, attack_stores
from s2ap_train.hardening.decision_choice.wiring import wiring
from s2ap_train.hardening.fitting_attacks import fitting_attacks
from s2ap_train.hardening.purifier_choice import By, check_grid, stored_share
from s2ap_train.hardening.train import stored_components
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import ChoiceSettings
from s2ap_train.recipe.tables import DecisionRecipe

__all__ = ["BEFORE_THE_FILE", "Gradients", "Phase", "StoredAttacks", "attack_phases", "stored_attacks"]

_PURIFIERS, _FITTED, _DECISIONS = "purifiers under attack", "fitting attacks", "decisions under attack"
BEFORE_THE_FILE = (_PURIFIERS, _FITTED, _DECISIONS)
"""Phases that attack before there is a file."""
_FITTING = 6  # attacks on fitting images
_NEAR_AND_SPARSE = 300.0  # gradients of the classifier that DeepFool, JSMA and Local Search are worth at the most
_STANDING: Mapping[Answer, float] = MappingProxyType({"robust": 0.7, "mixed": 0.7, "accurate": 0.1})
"""Share of the images that a mean step on a decision still attacks, the others have fallen: 40 of recipe fashion."""
_CHECKS = (
    0.15  # of a gradient through everything: what it costs after each step, on average, to ask the decision itself
)
_SWEPT_THROUGH, _SWEPT_PAST = 5.0, 2.0
"""Descents of the attack on one purifier that is compared, along its gradient and past it."""
_SEARCHED = 4  # sweeps of Square: off, the recipe's purifier, its twin with rho 0; off again, alone
_FORWARD = 1 / 3  # of a gradient: an answer
_EVALUATED_PAST, _EVALUATED_THROUGH = 12.0, 8.0  # descents past the purifier and through it of one row of an evaluation
_ROWS = {"quick": 4.0, "standard": 30.0, "full": 500.0}
"""Rows of 20 steps an image that an evaluation is worth; measured on digits."""


@dataclass(frozen=True)
class Phase:
    """A part that is trained, or a phase that attacks.

    Attributes:
        name: Of the part or phase.
        seconds: On one core.
    """

    name: str
    seconds: float


@dataclass(frozen=True)
class Gradients:
    """Seconds of a gradient with respect to one image.

    Attributes:
        classifier: In the classifier.
        members: In all members together.
        purifier: Through the purifier alone; 0 where nothing is purified.
        a_pass: Through one unit of a purifier's `work`.
    """

    classifier: float
    members: float
    purifier: float
    a_pass: float = 0.0

    @property
    def networks(self) -> float:
        """In classifier and members together."""
        return self.classifier + self.members


@dataclass(frozen=True)
class StoredAttacks:
    """Attacks that a work folder holds for the networks in it.

    Attributes:
        fitting: Attacks on fitting images.
        decisions: Decisions that were attacked, each goal counted.
        purifiers: Share of the work of comparing purifiers.
        evaluation: Share of the work of attacking the file.
    """

    fitting: int = 0
    decisions: int = 0
    purifiers: float = 0.0
    evaluation: float = 0.0


def stored_attacks(recipe: Recipe, splits: Splits, work_dir: Path, *, choose: By | None = None) -> StoredAttacks:
    """What is done already; nothing where a network is still to be trained, as the attacks depend on all of them.

    Args:
        recipe: What is to be done.
        splits: Its data.
        work_dir: Where attacks are stored.
        choose: Who decides on the purifier; None: no purifiers are compared.
    """
    components = stored_components(recipe, splits, work_dir)
    if components is None:
        return StoredAttacks()
    fitting, decisions = attack_stores(recipe, Networks.of(recipe, components), splits, work_dir)
    return StoredAttacks(
        fitting=sum(fitting.load(name) is not None for name in fitting_attacks(recipe, components, splits)),
        decisions=decisions.count(min(recipe.decision_choice.samples, len(splits.fit))),
        purifiers=0.0 if choose is None else stored_share(recipe, components, splits, work_dir),
    )


def attack_phases(
    recipe: Recipe, splits: Splits, gradients: Gradients, stored: StoredAttacks, *, choose: By | None = None
) -> tuple[Phase, ...]:
    """The phases that attack: purifiers and decisions that are compared, fitting images, and the file.

    Args:
        recipe: What is to be done.
        splits: Its data.
        gradients: What a gradient costs.
        stored: What is done already.
        choose: As for `stored_attacks`.
    """
    one = replace(gradients, purifier=0.0) if recipe.purifier.off else gradients
    fitting = len(splits.fit) * ((30 + _NEAR_AND_SPARSE) * one.classifier + 30 * one.networks + 30 * one.members)
    decisions = [*_decisions(recipe, splits, one)][stored.decisions :]
    through = one.networks + (0.0 if recipe.decision.purify == "off" else one.purifier)
    row = _EVALUATED_PAST * one.networks + _EVALUATED_THROUGH * through
    tested = min(recipe.evaluation.samples, len(splits.test))
    swept = 0.0 if choose is None else _purifiers(recipe, splits, gradients)
    return (
        Phase(_PURIFIERS, swept * (1 - stored.purifiers)),
        Phase(_FITTED, fitting * (1 - min(stored.fitting, _FITTING) / _FITTING)),
        Phase(_DECISIONS, sum(decisions)),
        Phase("evaluation", tested * 20 * row * _ROWS[recipe.evaluation.budget] * (1 - stored.evaluation)),
    )


def _purifiers(recipe: Recipe, splits: Splits, one: Gradients) -> float:
    """Seconds of the attacks on all purifiers that are compared, networks behind them included."""
    settings = recipe.choice or ChoiceSettings()
    standing = _STANDING["robust"] * min(settings.samples, len(splits.validation))
    descents = standing * settings.steps * settings.restarts
    queries = standing * settings.square_queries * _FORWARD
    own = one.a_pass * recipe.purifier.work
    tried = (one.a_pass * config.work for config in check_grid(recipe))
    attacks = (
        _SWEPT_THROUGH * (one.networks + through) + _SWEPT_PAST * (one.networks + _FORWARD * through)
        for through in tried
    )
    return descents * sum(attacks) + queries * (_SEARCHED * one.networks + 2 * own)


def _decisions(recipe: Recipe, splits: Splits, one: Gradients) -> Iterator[float]:
    """Seconds of every attack on a decision, in the order in which they are made, if none is better than the first."""
    roles = ("juror", *(family.role for family in recipe.members.values() for _ in range(family.count)))
    budget = attack_budget(recipe, len(splits.classes))
    images = min(recipe.decision_choice.samples, len(splits.fit))
    wanted, grid = beginning(recipe.decision, recipe.decision_choice, purifier=not recipe.purifier.off)

    def seconds(decision: DecisionRecipe, goal: Goal) -> float:
        _, jury = wiring(decision, roles)
        correction = jury.corrects(recipe.detection.correction)
        plan = defended_plan(replace(jury.unflagged(), correction=correction), budget, goal)
        past = sum(descent.path in {"none", "identity"} for descent in plan)
        through = one.networks + (0.0 if decision.purify == "off" else one.purifier)
        work = past * one.networks + (len(plan) - past) * through + _CHECKS * len(plan) * through
        return _STANDING[decision.answer] * images * budget.steps * work

    first_juror = wanted.model_copy(update={"answer": "robust", "purify": "off"})
    yield seconds(first_juror, "wrong label")
    for decision, goal in expected(wanted, grid, jurors=roles.count("juror")):
        yield seconds(decision, goal)
