"""Choosing the decision: every candidate is calibrated, attacked, and faces what was found for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from s2ap_defend.decision_record import Frontier
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive.goals import Goal
from s2ap_train.calibration import Weakness, refuse
from s2ap_train.calibration.stage_engines import StageTimes
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.decision_choice.frontier import Measured, frontier_row
from s2ap_train.hardening.decision_choice.rules import (
    GOALS,
    JURY_ANSWERS,
    STEPS,
    answers,
    beginning,
    better,
    chosen_answer,
    hopeful,
    said_of,
    said_of_cost,
    variants,
)
from s2ap_train.hardening.decision_choice.search import Search
from s2ap_train.hardening.train import Components
from s2ap_train.jobs import Workers
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.tables import DecisionRecipe

__all__ = ["Attacks", "ChosenDecision", "attacked_hopeful", "choose_decision"]


class Attacks(Protocol):
    """The attacks on decisions so far."""

    def attack(self, wanted: Sequence[tuple[DecisionRecipe, Goal]]) -> None:
        """Attack decisions, each for a goal."""

    def measured(self, decision: DecisionRecipe) -> Measured:
        """What a decision makes of everything that was found."""


@dataclass(frozen=True)
class ChosenDecision:
    """The decision that is exported, and what it was chosen from.

    Attributes:
        decision: Its settings.
        frontier: Every decision that was compared, for the manifest.
        fitting: Attacked images that evidence is fitted on, of `fitting_attacks`.
        weaknesses: What the recipe asked for and the attacks did not leave.
    """

    decision: DecisionRecipe
    frontier: Frontier
    fitting: ImageSet
    weaknesses: tuple[Weakness, ...] = ()


def choose_decision(
    recipe: Recipe,
    components: Components,
    splits: Splits,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
    strict: bool = True,
    times: StageTimes | None = None,
) -> ChosenDecision:
    """Attack every candidate, and the first juror alone, and take one: who answers first, then the rest step by step.

    Args:
        recipe: Its `decision` says who shall answer and where the search begins, `decision_choice` what is compared.
        components: The trained networks.
        splits: The data; images of the fitting split are attacked.
        work_dir: Finished attacks are stored in it.
        reporter: Shows every attack.
        workers: Processes; None takes one a core.
        strict: Whether a candidate that cannot be calibrated as the recipe says, and a mix that keeps too few labels,
            are refused; otherwise candidates are as good as they can be, and the jury answers.
        times: Of the stages, members as they were trained: then costs are times; None: they are operations.

    Raises:
        RecipeError: If something is refused, or a process was killed.
    """
    wanted, grid = beginning(recipe.decision, recipe.decision_choice, purifier=not recipe.purifier.off)
    search = Search.of(recipe, components, splits, work_dir, reporter, workers, refuse if strict else _tolerated, times)
    compared = answers(wanted, grid)
    search.attack([(one, "wrong label") for one in compared], first_juror=True)
    hope = attacked_hopeful(search, wanted, compared)
    index, reason = chosen_answer(wanted, [search.measured(one) for one in hope])
    taken, reasons = hope[index], [reason]
    weaknesses = _other_answer(wanted, taken, reason)
    if strict and weaknesses:
        refuse(weaknesses[0])
    for step in STEPS:
        others = variants(taken, grid, step, jurors=components.roles.count("juror"))
        if not others:
            continue
        search.attack([(one, goal) for one in others for goal in GOALS])
        compared = (*compared, *others)
        for one in others:
            new, old = search.measured(one), search.measured(taken)
            if better(new, old):
                taken = one
                reasons.append(said_of(step, new, old))
    reasons.append(said_of_cost(search.measured(taken), [search.measured(one) for one in compared]))
    rows = tuple(frontier_row(search.measured(one)) for one in compared)
    return ChosenDecision(
        decision=taken,
        frontier=Frontier(
            split="fit",
            samples=len(search.work.data),
            eps=recipe.eps,
            seed=recipe.seed,
            attack=(
                "Auto-PGD for a wrong answer of each choice, flagged or not, and of those with most labels left for an "
                f"unflagged one, too; through the purifier and past it, wrong labels aimed at: "
                f"{search.work.budget.targets}, {grid.steps} steps each; what was found for one choice is tried on all"
            ),
            label_cost=recipe.decision.label_cost,
            robust_classifier=search.first_juror(),
            chosen=compared.index(taken),
            reason=" ".join(one for one in reasons if one),
            rows=rows,
            cost_in="operations" if times is None else "time",
        ),
        fitting=search.fitting,
        weaknesses=weaknesses,
    )


def attacked_hopeful(
    search: Attacks, wanted: DecisionRecipe, compared: Sequence[DecisionRecipe]
) -> list[DecisionRecipe]:
    """The decisions that may still answer, all of them attacked for an unflagged wrong answer, too; the jury first.

    What is found for one lowers others: where that is the jury, mixes that were behind it may be hopeful again.
    """
    attacked: list[DecisionRecipe] = []
    while True:
        found = [compared[i] for i in hopeful(wanted, [search.measured(one) for one in compared])]
        new = [one for one in found if one not in attacked]
        if not new:
            return found
        search.attack([(one, "mislead") for one in new])
        attacked += new


def _tolerated(weakness: Weakness) -> None:
    """Nothing: of the candidates, the one that is exported says what it lacks."""


def _other_answer(wanted: DecisionRecipe, taken: DecisionRecipe, reason: str) -> tuple[Weakness, ...]:
    """That somebody else answers than the recipe says."""
    if taken.answer == wanted.answer:
        return ()
    why = reason.removesuffix(JURY_ANSWERS)
    return (
        Weakness(
            part="answer",
            found=f"the answer {wanted.answer!r} was asked for and is not worth it: {why}",
            instead=f"the answer is {taken.answer!r}",
            cure="give a larger decision.label_cost or more --effort, or ask for it afterwards with calibrate --answer",
        ),
    )
