"""The defence before it is exported, as its attacker computes with it: torch networks, joined as a decision says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import SequentialTest, StageAnswers
from s2ap_defend.types import Float32, Int64
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.goals import Goal
from s2ap_train.adaptive.purified import variant_view
from s2ap_train.adaptive.search import View, adaptive_attack, defended_plan
from s2ap_train.adaptive.systems import judge, stage_verdicts
from s2ap_train.attacks.right_images import BATCH
from s2ap_train.calibration.every_answer import EveryAnswer
from s2ap_train.compute.threads import one_thread
from s2ap_train.data import ImageSet
from s2ap_train.hardening.train import Components
from s2ap_train.jobs import Found
from s2ap_train.models import fold_batch_norm
from s2ap_train.purifier import UNet, hadamard_bank, purify
from s2ap_train.purifier.variants import off, purification
from s2ap_train.recipe import Recipe
from s2ap_train.recipe.purifier_grid import settings_of
from s2ap_train.statistics.outcome import Outcome
from s2ap_train.storage.fingerprint import weights_digest

__all__ = ["Attacked", "Decided", "Networks", "attack_decision"]


@dataclass(frozen=True)
class Attacked:
    """What is attacked, and with what work.

    Attributes:
        data: Images and labels.
        eps: l_inf budget, pixels in [0, 1].
        budget: Steps and targets.
        seed: Of the random starts.
    """

    data: ImageSet
    eps: float
    budget: AdaptiveBudget
    seed: int


@dataclass(frozen=True)
class Networks:
    """Purifier, classifier and members as torch functions; they travel to other processes as a pickle.

    Attributes:
        recipe: Its purifier is in front of them.
        classifier: The network that is defended.
        members: As they were trained.
        score_model: Of the purifier; None: nothing is purified.
        image_shape: (C, H, W).
    """

    recipe: Recipe
    classifier: nn.Module
    members: tuple[nn.Module, ...]
    score_model: UNet | None
    image_shape: tuple[int, int, int]

    @classmethod
    def of(cls, recipe: Recipe, components: Components) -> Networks:
        """The trained networks, folded as they are exported."""
        named = (components.classifier(recipe.classifier), *components.members)
        classifier, *members = (fold_batch_norm(one.model).requires_grad_(False) for one in named)
        score_model = components.score_model.requires_grad_(False)
        return cls(recipe, classifier, tuple(members), score_model, named[0].model.image_shape)

    @property
    def digest(self) -> str:
        """SHA-256 over all of them."""
        return weights_digest([one for one in (self.classifier, *self.members, self.score_model) if one is not None])

    def view(self, sees: Sequence[Sees], purify_which: Purify, order: Int64) -> View:
        """What the attacker differentiates.

        Args:
            sees: What each member sees, as they were trained.
            purify_which: Which images are purified; the attacker goes past the purifier by itself.
            order: Members in the order in which they are asked.
        """
        config, variant = self.recipe.purifier, off()
        if self.score_model is not None and not config.off and purify_which != "off":
            variant = purification(settings_of(config).in_words, self.score_model, self._bank, config)
        return variant_view(variant, self.classifier, [self.members[i] for i in order], sees=[sees[i] for i in order])

    def ask(self, images: Float32) -> EveryAnswer:
        """What every stage says of images [N, C, H, W], members as they were trained."""

        def asked(seen: Sees, which: Purify) -> StageAnswers:
            with one_thread():  # two threads in such small operators are many times slower where others compute, too
                return self.said(images, (seen,) * len(self.members), which)

        return EveryAnswer(asked)

    def said(self, images: Float32, sees: Sequence[Sees], purify_which: Purify) -> StageAnswers:
        """What the stages of one wiring say of images [N, C, H, W], members as they were trained."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(images), BATCH):
                x = torch.from_numpy(images[start : start + BATCH])
                behind, error = x, x.new_zeros(len(x))
                if self.score_model is not None and purify_which != "off":
                    behind, error = purify(self.score_model, x, self._bank, self.recipe.purifier)
                wired = zip(self.members, sees, strict=True)
                members = [_logs(one, behind if seen == "purified" else x) for one, seen in wired]
                on_raw = _logs(self.classifier, x) if purify_which == "suspicious" else None
                parts.append(StageAnswers(_logs(self.classifier, behind), np.stack(members), on_raw, error.numpy()))
        return StageAnswers.concatenate(parts)

    @cached_property
    def _bank(self) -> Tensor:
        config = self.recipe.purifier
        return hadamard_bank(config.bank_size, self.image_shape, config.bank_seed)


@dataclass(frozen=True)
class Decided:
    """Networks joined as one decision says: what is attacked.

    Attributes:
        networks: The networks.
        test: The calibrated decision.
        order: Members in the order in which they are asked.
        sees: What each member sees, as they were trained.
        purify: Which images are purified.
    """

    networks: Networks
    test: SequentialTest
    order: Int64
    sees: tuple[Sees, ...]
    purify: Purify

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of its verdicts."""
        said = self.networks.said(images, self.sees, self.purify).reorder(self.order)
        return judge(stage_verdicts(images, said, self.test), labels, self.test)

    def answers(self, every: EveryAnswer) -> StageAnswers:
        """What its stages say, members in the order in which they are asked."""
        return every.wired(self.sees, self.purify).reorder(self.order)

    @property
    def view(self) -> View:
        """What its attacker differentiates."""
        return self.networks.view(self.sees, self.purify, self.order)


def attack_decision(decided: Decided, work: Attacked, goal: Goal) -> Found:
    """Images [N, C, H, W] nearest to a goal against one decision; also run in other processes.

    Args:
        decided: What is attacked.
        work: Images and work.
        goal: 'wrong label', flagged or not, or 'mislead'.
    """
    with one_thread():
        found = adaptive_attack(
            decided,
            decided.view,
            defended_plan(decided.test, work.budget, goal),
            work.data,
            eps=work.eps,
            budget=work.budget,
            seed=work.seed,
            goal=goal,
        )
    return Found(found.images)


def _logs(network: nn.Module, images: Tensor) -> Float32:
    return np.asarray(network(images).log_softmax(1).numpy(), dtype=np.float32)
