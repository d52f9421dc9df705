"""Chains that are not the served file but are made of its stages, and single networks: all on ONNX Runtime.

Each is a `Target`: judged by the stages' answers, and seen by an attacker that knows exactly that chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor
from torch.nn.functional import softsign

from s2ap_defend.model_file import ModelFile
from s2ap_defend.sequential import NEAR_TIE, SequentialTest, member_scores, run_sequential_test
from s2ap_defend.types import Float32, Int64, Verdicts
from s2ap_train.adaptive.objectives import (
    Objective,
    agreement_objective,
    classifier_objective,
    margin,
    targeted_agreement_objective,
    targeted_margin,
)
from s2ap_train.adaptive.search import AdaptiveBudget, Descent, bare_plan, defended_plan, twin_view
from s2ap_train.adaptive.systems import judge, never_flagged
from s2ap_train.calibration.stage_engines import Said, StageEngines
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.redteam.target import AttackPlan, Target
from s2ap_train.statistics.outcome import Outcome
from s2ap_train.twin import Twin, torch_stage
from s2ap_train.twin.hidden import hidden_stage

__all__ = [
    "CHAINS",
    "Chain",
    "ChainSystem",
    "OpenedFile",
    "chain_target",
    "network_target",
    "purified_plan",
    "soft_count",
    "vote_plan",
    "vote_shares",
]


class ChainSystem:
    """Stages of a file, joined in another way.

    Args:
        engines: The stages of the chain; without members there is neither test nor vote.
        test: The sequential test over the members; None: nothing is ever flagged.
        vote: Classifier and members vote on every image, and no test is asked.
    """

    def __init__(self, engines: StageEngines, test: SequentialTest | None = None, *, vote: bool = False) -> None:
        self._engines = engines
        self._test = test
        self._vote = vote

    def __call__(self, images: Float32, labels: Int64) -> Outcome:
        """Outcome of the chain's answers; where nothing is flagged, the score is the margin of the true label."""
        said = self._engines.ask(images)
        if self._vote:
            asked = np.full(len(images), len(said.members), dtype=np.int64)
            return replace(never_flagged(vote_shares(said), labels), members_used=asked)
        if self._test is None:
            return never_flagged(said.classifier, labels)
        return judge(_verdicts(said, self._test), labels, self._test)

    def milliseconds(self, images: Float32) -> float:
        """Time of one image alone: its stages one after the other, members in whole waves; the median over images.

        What a file spends between its stages is not in it.
        """
        times = self._engines.alone(images)
        alone = times.purifier + times.classifier
        if self._vote or self._test is None:
            return alone + float(times.members.sum())
        used = self(images, np.zeros(len(images), dtype=np.int64)).members_used
        ends = np.cumsum(self._test.waves)
        asked = ends[np.searchsorted(ends, used)]
        return alone + float(np.median(np.concatenate([[0.0], times.members.cumsum()])[asked]))


def vote_shares(said: Said) -> Float32:
    """Logarithms of shares [N, K] whose largest is the label with the most votes of classifier and members.

    Every voter has one vote, as in the correction: a member whose best label leads the base label by less than a
    near-tie votes for the base label, and ties go to the higher mean log-probability. For the score of a search a
    share also holds, as at most one vote, the softmax of the mean log-probabilities.
    """
    base = said.classifier.argmax(axis=1)
    agrees = member_scores("margin", said.members, base) < NEAR_TIE  # [n, N]
    labels = np.vstack([base[None], np.where(agrees, base, said.members.argmax(axis=-1))])  # [n + 1, N]
    votes = np.zeros(said.classifier.shape)
    np.add.at(votes, (np.arange(len(base)), labels), 1.0)
    mean = np.concatenate([said.classifier[None], said.members]).astype(np.float64).mean(axis=0)
    soft = np.exp(mean - mean.max(axis=1, keepdims=True))
    soft /= soft.sum(axis=1, keepdims=True)
    shares: Float32 = np.log((votes + soft) / (len(labels) + 1) + 1e-12).astype(np.float32)
    return shares


def soft_count() -> Objective:
    """Votes for the true label, or for anything but the target: the mean over all voters of m / (1 + |m|), m in nats.

    No voter is worth more than a vote, however far it is lost, and even a sure one keeps a slope: at 20 nats a 441st
    of that of an undecided one.
    """

    def loss(c: Tensor, m: Tensor | None, y: Tensor, t: Tensor) -> Tensor:
        voters = c[None] if m is None else torch.cat([c[None], m])
        aimed = bool((t != y).any())
        each = [targeted_margin(one, t) if aimed else margin(one, y) for one in voters]
        return softsign(torch.stack(each)).mean(0)

    return Objective("votes", None, loss)


def purified_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Every descent of `bare_plan` through the exact gradient, and others for gradients that clamps or steps mask.

    Of a budget that is not thorough, those that broke most.
    """
    if not budget.thorough:
        return [
            Descent(classifier_objective("cross_entropy"), "exact", "random"),
            Descent(classifier_objective("dlr"), "exact", "random"),
            Descent(classifier_objective("margin"), "straight_through", "best"),
        ]
    through = [replace(one, path="exact") for one in bare_plan(budget)]
    return [
        *through,
        Descent(classifier_objective("cross_entropy"), "none", "random"),
        Descent(classifier_objective("margin"), "identity", "random"),
        Descent(classifier_objective("dlr"), "exact", "best"),
        Descent(classifier_objective("margin"), "straight_through", "random"),
    ]


def vote_plan(budget: AdaptiveBudget) -> list[Descent]:
    """Descents on a vote of classifier and members, without a purifier; of a budget that is not thorough, fewer."""
    votes = soft_count()
    plan = [
        Descent(agreement_objective(), "none", "random"),
        Descent(votes, "none", "best"),
        Descent(votes, "none", "best", target=0),
    ]
    if not budget.thorough:
        return plan
    plan += [Descent(votes, "none", "random", target=rank) for rank in range(budget.targets)]
    return plan + [
        Descent(targeted_agreement_objective(), "none", "random", target=rank) for rank in range(budget.targets)
    ]


def network_target(name: str, stage: ModelProto) -> Target:
    """One network on ONNX Runtime, such as an adversarially trained, a pruned or a wider classifier.

    Args:
        name: Of the network.
        stage: `image` -> `log_probabilities`, as an exported classifier.

    Raises:
        ModelFileError: If the stage cannot be run or differentiated.
    """
    twin, hidden = torch_stage(stage), torch_stage(hidden_stage(stage))

    def classify(images: Tensor) -> Tensor:
        return twin(images)[0]

    return Target(
        name=name,
        system=ChainSystem(StageEngines(None, stage, (), threads=1)),
        view=lambda images, path, members: (classify(images), None),  # noqa: ARG005
        classify=classify,
        features=lambda images, path: hidden(images)[0].flatten(1),  # noqa: ARG005
    )


@dataclass(frozen=True)
class OpenedFile:
    """A model file with what its chains are made of; all of them share it.

    Attributes:
        file: The opened file.
        twin: Its differentiable stages.
        engines: Its stages on ONNX Runtime, each with one thread.
    """

    file: ModelFile
    twin: Twin
    engines: StageEngines

    @classmethod
    def of(cls, file: ModelFile) -> OpenedFile:
        """Start all stages of a file.

        Raises:
            ModelFileError: If a stage cannot be run or differentiated.
        """
        return cls(file, Twin.from_file(file), StageEngines.from_file(file, threads=1))


def chain_target(name: str, opened: OpenedFile) -> Target:
    """One of `CHAINS` of a model file.

    Raises:
        KeyError: If there is no such chain.
    """
    chain, file, twin, engines = CHAINS[name], opened.file, opened.twin, opened.engines
    if not chain.purifies:
        engines, twin = engines.without(purifier=True), twin.without_purifier()
    if not chain.members:
        engines = engines.without(members=True)
    test = None if chain.test is None else replace(file.manifest.test.to_test(), correct=chain.test == "correct")

    def view(images: Tensor, path: GradientPath, members: int | None) -> tuple[Tensor, Tensor | None]:
        return twin_view(twin)(images, path, members if chain.members else 0)

    plan: AttackPlan = purified_plan if not chain.members else vote_plan
    return Target(
        name=name,
        system=ChainSystem(engines, test, vote=chain.members and test is None),
        view=view,
        classify=twin.classify,
        test=test,
        members=twin.member_count if chain.members else 0,
        purifies=chain.purifies and not file.manifest.purifier.off,
        features=lambda images, path: twin.features(twin.purify(images, path)),
        plan=plan if test is None else partial(defended_plan, test),
    )


@dataclass(frozen=True)
class Chain:
    """Which stages of a file a chain has.

    Attributes:
        purifies: Whether images are purified.
        members: Whether members are asked.
        test: What becomes of flagged images; None: there is no test, so members, if there are any, vote on every image.
    """

    purifies: bool
    members: bool
    test: Literal["correct", "reject"] | None


CHAINS: Mapping[str, Chain] = MappingProxyType(
    {
        "purifier only": Chain(purifies=True, members=False, test=None),
        "detector only": Chain(purifies=False, members=True, test="reject"),
        "vote only": Chain(purifies=False, members=True, test=None),
        "full, reject": Chain(purifies=True, members=True, test="reject"),
        "full, correct": Chain(purifies=True, members=True, test="correct"),
    }
)
"""Chains by name; the last two are the file itself, whichever of them it is made for."""


def _verdicts(said: Said, test: SequentialTest) -> Verdicts:
    """The verdicts of a test on stages that were asked one by one; the reconstruction error is not asked for: nan."""
    base = said.classifier.argmax(axis=1)
    outcome = run_sequential_test(test, said.members, base)
    return Verdicts(
        label=outcome.label,
        adversarial=outcome.adversarial,
        base_label=base,
        probabilities=np.exp(said.classifier),
        label_change_rate=outcome.label_change_rate,
        log_likelihood_ratio=outcome.log_likelihood_ratio,
        members_used=outcome.members_used,
        votes=outcome.votes,
        purified=said.purified,
        reconstruction_error=np.full(len(base), np.nan, dtype=np.float32),
        abstained=outcome.abstained,
    )
