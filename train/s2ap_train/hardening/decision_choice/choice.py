"""Choosing who answers: every candidate is attacked for a wrong answer, and faces what was found for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from s2ap_defend.progress import Reporter
from s2ap_defend.sequential import StageAnswers
from s2ap_defend.types import Float32
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.purified import variant_view
from s2ap_train.adaptive.views import View
from s2ap_train.attacks.right_images import BATCH
from s2ap_train.calibration import Jury
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import Splits
from s2ap_train.hardening.decision_choice.attack import Attacked, attack_answer, attack_in_words
from s2ap_train.hardening.decision_choice.frontier import Measured, chosen_mix, measure
from s2ap_train.hardening.decision_choice.wiring import wiring
from s2ap_train.hardening.train import Components
from s2ap_train.jobs import Found, ResumableJob, Store, Workers, run_resumable
from s2ap_train.models import fold_batch_norm
from s2ap_train.purifier import hadamard_bank
from s2ap_train.purifier.variants import off, purification
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import settings_of
from s2ap_train.recipe.tables import DecisionGrid, DecisionRecipe
from s2ap_train.storage.fingerprint import fingerprint, weights_digest

__all__ = ["FOLDER", "ChosenDecision", "candidates", "choose_decision"]

FOLDER = "decision-choice"
"""Where, in the work folder, finished attacks are stored."""
ATTACK_VERSION = 1
"""Raise it with every change of what an attack does."""


@dataclass(frozen=True)
class ChosenDecision:
    """The decision that is exported, and what it was chosen from.

    Attributes:
        decision: Its settings.
        reason: Why, in a sentence.
        compared: Every candidate.
        attacked: Images that were found for the first juror alone, then for each of them [N, C, H, W].
        attack: What the attacker did, in words.
    """

    decision: DecisionRecipe
    reason: str
    compared: tuple[DecisionRecipe, ...]
    attacked: tuple[Float32, ...]
    attack: str


def candidates(decision: DecisionRecipe, grid: DecisionGrid) -> tuple[DecisionRecipe, ...]:
    """The jury and every mix of the grid, with each weight of the jurors, the recipe's own, and the classifier."""
    mixes: list[dict[str, Any]] = [
        {"answer": "mixed", "jury_share": share, "amplification": power}
        for share in grid.jury_shares
        for power in grid.amplifications
    ]
    answers: list[dict[str, Any]] = [{"answer": "robust"}, *mixes]
    tried = [one | {"juror_weight": weight} for weight in grid.juror_weights for one in answers]
    tried += [{}, {"answer": "accurate"}]
    return tuple(dict.fromkeys(decision.model_copy(update=one) for one in tried))


def choose_decision(
    recipe: Recipe,
    components: Components,
    splits: Splits,
    work_dir: Path,
    reporter: Reporter,
    *,
    workers: Workers = None,
) -> ChosenDecision:
    """Attack every candidate, and the first juror alone, and take one.

    The recipe says who answers; of juries the one that keeps most labels is taken, of mixes that of `chosen_mix`.

    Args:
        recipe: Its `decision` says who shall answer, `decision_choice` what is compared.
        components: The trained networks.
        splits: The data; images of the fitting split are attacked.
        work_dir: Finished attacks are stored in it.
        reporter: Shows every attack.
        workers: Processes; None takes one a core.

    Raises:
        RecipeError: If there are fewer jurors than open, or a process was killed.
    """
    grid = recipe.decision_choice
    data = splits.fit.subset(slice(0, grid.samples))
    budget = AdaptiveBudget(steps=grid.steps, cheap_steps=grid.steps, restarts=1, targets=grid.targets, thorough=False)
    work = Attacked(data, recipe.eps, budget, recipe.seed)
    tried = candidates(recipe.decision, grid)
    networks = _Networks.of(recipe, components)
    key = (ATTACK_VERSION, networks.digest, splits.sha256("fit"), len(data), recipe.eps, recipe.seed, budget)
    wired = [wiring(one, components.roles) for one in tried]
    alone = Jury((1.0, *(0.0 for _ in components.roles[1:])), (0,), "robust")
    jobs = [
        ResumableJob(
            name=name,
            function=_attacked,
            arguments=lambda _, jury=jury, sees=sees: (networks, sees, jury, work),  # type: ignore[misc]
            decides=(fingerprint(recipe.purifier), sees, fingerprint(jury)),
        )
        for name, (sees, jury) in [
            ("the first juror alone", (wired[0][0], alone)),
            *((f"{one.answer} {number}", wired[number]) for number, one in enumerate(tried)),
        ]
    ]
    with one_thread():
        store = Store(work_dir / FOLDER, key)
        done = run_resumable(jobs, store, reporter, title="decisions under attack", workers=workers)
        found = tuple(done[job.name].images for job in jobs)
        view = networks.view(wired[0][0])
        said = [_ask(view, images) for images in (data.images, *found)]
    measured = [
        measure(one, jury.unflagged(), said[0], said[1:], data.labels)
        for one, (_, jury) in zip(tried, wired, strict=True)
    ]
    decision, reason = _taken(recipe.decision, measured)
    return ChosenDecision(decision, reason, tried, found, attack_in_words(budget))


def _taken(wanted: DecisionRecipe, measured: Sequence[Measured]) -> tuple[DecisionRecipe, str]:
    """Of juries the one that keeps most labels; of mixes the most accurate one within the label cost of that jury."""
    juries = [one for one in measured if one.decision.answer == "robust"]
    jury = max(juries, key=lambda one: (one.label_right.mean(), one.clean_right.mean()))
    if wanted.answer == "robust":
        return jury.decision, (
            f"Of {len(juries)} juries this one keeps the most labels under attack, {jury.label_right.mean():.1%}, with "
            f"{jury.clean_right.mean():.1%} right without attack."
        )
    if wanted.answer == "accurate":
        return wanted, "The recipe says so: the classifier answers what is not flagged."
    mixes = [one for one in measured if one.decision.answer == "mixed"]
    index, why = chosen_mix(jury, mixes, label_cost=wanted.label_cost)
    return (jury if index is None else mixes[index]).decision, why


@dataclass(frozen=True)
class _Networks:
    """Purifier, classifier and members as torch functions; they travel to other processes as a pickle."""

    recipe: Recipe
    networks: tuple[torch.nn.Module, ...]
    image_shape: tuple[int, int, int]

    @classmethod
    def of(cls, recipe: Recipe, components: Components) -> _Networks:
        named = (components.classifier(recipe.classifier), *components.members)
        folded = [fold_batch_norm(one.model).requires_grad_(False) for one in named]
        score = components.score_model.requires_grad_(False)
        return cls(recipe, (*folded, score), named[0].model.image_shape)

    @property
    def digest(self) -> str:
        return weights_digest(list(self.networks))

    def view(self, sees: Sequence[str]) -> View:
        """What the attacker differentiates; members as they were trained."""
        classifier, *members, score = self.networks
        config = self.recipe.purifier
        variant = off()
        if not config.off and self.recipe.decision.purify != "off":
            bank = hadamard_bank(config.bank_size, self.image_shape, config.bank_seed)
            variant = purification(settings_of(config).in_words, score, bank, config)
        return variant_view(variant, classifier, members, sees=sees)  # type: ignore[arg-type]


def _attacked(networks: _Networks, sees: Sequence[str], jury: Jury, work: Attacked) -> Found:
    """The attack on one candidate; also run in other processes."""
    with one_thread():
        return Found(attack_answer(jury, networks.view(sees), work, []))


def _ask(view: View, images: Float32) -> StageAnswers:
    """What the networks say of images, members as they were trained."""
    parts = []
    with torch.no_grad():
        for start in range(0, len(images), BATCH):
            c, m = view(torch.from_numpy(images[start : start + BATCH]), "exact", None)
            if m is None:  # our own bug
                raise ValueError("a decision without members")
            parts.append((c.numpy(), m.numpy()))
    return StageAnswers(np.concatenate([c for c, _ in parts]), np.concatenate([m for _, m in parts], axis=1))
