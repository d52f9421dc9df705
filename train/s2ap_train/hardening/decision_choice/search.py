"""The search among decisions: each is calibrated, attacked, and measured on what was found for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.goals import Goal
from s2ap_train.calibration import Answers, Calibration, Jury, OnWeakness, calibrate
from s2ap_train.calibration.every_answer import EveryAnswer
from s2ap_train.calibration.flops import StageCosts, StageFlops
from s2ap_train.calibration.stage_engines import StageTimes
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet, Splits
from s2ap_train.hardening.decision_choice.defence import Attacked, Decided, Networks, attack_decision
from s2ap_train.hardening.decision_choice.frontier import Measured, measure
from s2ap_train.hardening.decision_choice.wiring import wiring
from s2ap_train.hardening.fitting_attacks import Attack, as_copies, copied_image, fitting_attacks
from s2ap_train.hardening.train import Components
from s2ap_train.jobs import Found, ResumableJob, Store, Workers, run_resumable
from s2ap_train.purifier.sizes import pass_flops
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import settings_of
from s2ap_train.recipe.tables import DecisionRecipe
from s2ap_train.storage.fingerprint import fingerprint

__all__ = ["ATTACK_VERSION", "Search", "attack_budget", "attack_stores"]

FOLDER = "decision-choice"
"""Where, in the work folder, finished attacks on decisions are stored."""
FITTING = "fitting-attacks"
"""Where the attacked images are stored that evidence is fitted on."""
ATTACK_VERSION = 3
"""Raise it with every change of what an attack does."""


@dataclass
class Search:
    """The attacks so far; `said` grows with every one, and whoever is measured faces all."""

    recipe: Recipe
    components: Components
    networks: Networks
    work: Attacked
    fitting: ImageSet
    fits: tuple[tuple[EveryAnswer, ImageSet], ...]  # clean, attacked and held out, for calibration
    jobs: partial[dict[str, Found]]
    clean: EveryAnswer
    weak: OnWeakness
    times: StageTimes | None
    said: list[EveryAnswer] = field(default_factory=list)
    calibrated: dict[DecisionRecipe, Decided] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        components: Components,
        splits: Splits,
        work_dir: Path,
        reporter: Reporter,
        workers: Workers,
        weak: OnWeakness,
        times: StageTimes | None,
    ) -> Search:
        """Attack the fitting images, and ask the networks about them; arguments as for `choose_decision`.

        `weak` is called with what a candidate cannot be calibrated to; `times` are None where costs are operations.
        """
        data = splits.fit.subset(slice(0, recipe.decision_choice.samples))
        networks = Networks.of(recipe, components)
        on_fitting, on_decisions = attack_stores(recipe, networks, splits, work_dir)
        run = partial(run_resumable, reporter=reporter, workers=workers)
        attacks = fitting_attacks(recipe, components, splits)
        jobs = [ResumableJob(name, _fitted, partial(_only, one), name) for name, one in attacks.items()]
        done = run(jobs, on_fitting, title="fitting attacks")
        fitting = as_copies([done[name].images for name in attacks], splits.fit)
        fits = tuple((networks.ask(one.images), one) for one in (splits.fit, fitting, splits.calibration))
        return cls(
            recipe=recipe,
            components=components,
            networks=networks,
            work=Attacked(data, recipe.eps, attack_budget(recipe, len(splits.classes)), recipe.seed),
            fitting=fitting,
            fits=fits,
            jobs=partial(run, store=on_decisions, title="decisions under attack"),
            clean=networks.ask(data.images),
            weak=weak,
            times=times,
        )

    def attack(self, wanted: Sequence[tuple[DecisionRecipe, Goal]], *, first_juror: bool = False) -> None:
        """Attack decisions, each for a goal, and the first juror alone, and remember what is found."""
        against = [(self.decided(one), goal) for one, goal in wanted]
        if first_juror:
            against.insert(0, (self._alone(), "wrong label"))
        jobs = [
            ResumableJob(
                name=f"{goal} {number}",
                function=attack_decision,
                arguments=lambda _, one=one, goal=goal: (one, self.work, goal),  # type: ignore[misc]
                decides=fingerprint((self.recipe.purifier, one.sees, one.purify, one.order, one.test, goal)),
            )
            for number, (one, goal) in enumerate(against, start=1)
        ]
        if jobs:
            done = self.jobs(jobs)
            self.said += [self.networks.ask(done[job.name].images) for job in jobs]

    def decided(self, decision: DecisionRecipe) -> Decided:
        """A decision, calibrated on what the networks say."""
        if decision not in self.calibrated:
            sees, jury = wiring(decision, self.components.roles)
            made = self._calibrated(sees, decision.purify, jury)
            self.calibrated[decision] = Decided(self.networks, made.test, made.order, sees, decision.purify)
        return self.calibrated[decision]

    def measured(self, decision: DecisionRecipe) -> Measured:
        """What a decision makes of everything that was found."""
        one = self.decided(decision)
        clean, *attacked = (one.answers(said) for said in (self.clean, *self.said))
        return measure(decision, one.test, clean, attacked, self.work.data.labels, self._costs(one))

    def _costs(self, one: Decided) -> StageCosts:
        """What an image costs in each stage, members in the order in which they are asked."""
        purifier = self.recipe.purifier
        purifies = not purifier.off and one.purify != "off"
        if self.times is not None:
            return StageTimes(self.times.purifier * purifies, self.times.classifier, self.times.members[one.order])
        of_pass = pass_flops(self.components.score_model, self.networks.image_shape)
        return StageFlops(
            purifier=round(settings_of(purifier).passes * of_pass) if purifies else 0,
            classifier=round(self.components.classifier(self.recipe.classifier).flops),
            members=np.array([round(member.flops) for member in self.components.members], dtype=np.int64)[one.order],
        )

    def first_juror(self) -> tuple[float, float]:
        """Clean accuracy of the first juror alone, and its label accuracy under all that was found."""
        right = [said.raw.members[0].argmax(axis=1) == self.work.data.labels for said in (self.clean, *self.said)]
        return float(right[0].mean()), float(np.all(right, axis=0).mean())

    def _alone(self) -> Decided:
        n = len(self.components.members)
        raw: tuple[Sees, ...] = tuple("raw" for _ in range(n))
        test = Jury((1.0, *(0.0,) * (n - 1)), (0,), "robust").unflagged()
        return Decided(self.networks, test, np.arange(n, dtype=np.int64), raw, "off")

    def _calibrated(self, sees: Sequence[Sees], purify: Purify, jury: Jury) -> Calibration:
        (clean, fit), (attacked, copies), (held_out, calibration) = self.fits
        images = copied_image(copies, fit)
        detection = self.recipe.detection
        try:
            return calibrate(
                Answers(clean.wired(sees, purify), fit.labels, fit.labels),
                Answers(attacked.wired(sees, purify), copies.labels, copies.labels, images),
                Answers(held_out.wired(sees, purify), calibration.labels, calibration.labels),
                detection,
                jury,
                costs=None if detection.cost == "members" else [float(one.flops) for one in self.components.members],
                weak=self.weak,
            )
        except RecipeError as error:
            raise RecipeError(f"recipe {self.recipe.name}: {error}") from error


def attack_budget(recipe: Recipe, classes: int) -> AdaptiveBudget:
    """Work of the attack on each decision."""
    grid = recipe.decision_choice
    budget = AdaptiveBudget(
        steps=grid.steps,
        cheap_steps=grid.steps,
        restarts=1,
        targets=grid.targets,
        thorough=False,
        gradients=recipe.evaluation.gradients,
    )
    return budget.for_classes(classes)


def attack_stores(recipe: Recipe, networks: Networks, splits: Splits, work_dir: Path) -> tuple[Store, Store]:
    """Where the attacked fitting images lie, and what was found for each decision."""
    key = (ATTACK_VERSION, networks.digest, splits.sha256("fit"), recipe.eps, recipe.seed)
    attacked = min(recipe.decision_choice.samples, len(splits.fit))
    decided = (*key, attacked, attack_budget(recipe, len(splits.classes)))
    return Store(work_dir / FITTING, key), Store(work_dir / FOLDER, decided)


def _only(attack: Attack, _: object) -> tuple[Attack]:
    return (attack,)


def _fitted(attack: Attack) -> Found:
    """Attacked fitting images, one version after another; also run in other processes."""
    with one_thread():
        return Found(np.concatenate(attack()))
