"""What is attacked, as an attacker that knows everything sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from torch import Tensor

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.model_file import ModelFile, open_model_file
from s2ap_defend.sequential import SequentialTest
from s2ap_train.adaptive.search import (
    AdaptiveBudget,
    Descent,
    View,
    bare_plan,
    bare_view,
    defended_plan,
    twin_view,
)
from s2ap_train.adaptive.systems import BareSystem, DefendedSystem, System
from s2ap_train.purifier.gradient_path import GradientPath
from s2ap_train.twin import Twin
from s2ap_train.twin.answer_features import Features, answer_features

__all__ = ["AttackPlan", "Target", "bare_target", "defended_target", "open_targets", "opened"]

AttackPlan = Callable[[AdaptiveBudget], list[Descent]]
"""The descents of an attacker that knows everything of a system, for a budget."""


@dataclass(frozen=True)
class Target:
    """One system under attack.

    Attributes:
        name: Of the system.
        system: Answers images; it alone says what succeeded.
        view: What the attacker differentiates: log-probabilities of the classifier and of the members.
        classify: Images [N, C, H, W] -> log-probabilities of the bare classifier [N, K], differentiable: all that is
            known to an attacker that does not know of the defence.
        test: The sequential test; None: the system never flags.
        members: Members that `view` answers for, in the order in which they are asked.
        purifies: Whether there is a purifier, so that the path of a gradient matters.
        features: Hidden features of the networks that give the answer, those on each way of the gradient by
            themselves; empty: not to be had.
        plan: Descents through `view` that fit the system; by default those of a bare classifier, whatever `test` is.
        lent: Whether the gradient of the classifier is that of the members, as its own cannot be had.
    """

    name: str
    system: System
    view: View
    classify: Callable[[Tensor], Tensor]
    test: SequentialTest | None = None
    members: int = 0
    purifies: bool = False
    features: tuple[Features, ...] = ()
    plan: AttackPlan = bare_plan
    lent: bool = False

    @property
    def path(self) -> GradientPath:
        """The path of the gradient through all that stands before the classifier."""
        return "exact" if self.purifies else "none"


def opened(path: Path) -> ModelFile:
    """The file, opened and verified once a process, and again when it has changed.

    Raises:
        ModelFileError: If the file cannot be used.
    """
    return _opened(path, _changed(path))


def open_targets(path: Path) -> tuple[Target, Target]:
    """(the defended file as it is served, the bare classifier inside it), each with one thread; made once a process.

    Raises:
        ModelFileError: If the file cannot be used.
    """
    return _targets(path, _changed(path))


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None  # opening it says what is wrong


@lru_cache(maxsize=1)
def _opened(path: Path, changed: int | None) -> ModelFile:  # noqa: ARG001
    return open_model_file(path)


@lru_cache(maxsize=1)
def _targets(path: Path, changed: int | None) -> tuple[Target, Target]:  # noqa: ARG001
    file = opened(path)
    twin = Twin.from_file(file)
    return defended_target(file, path, twin), bare_target(file, twin)


def defended_target(file: ModelFile, path: Path, twin: Twin) -> Target:
    """The file, judged by the runtime that serves it and seen through its twin."""
    return Target(
        name="defended",
        system=DefendedSystem(DefendedClassifier.load(path, device="cpu", threads=1)),
        view=twin_view(twin),
        classify=twin.classify,
        test=twin.test,
        members=twin.member_count,
        purifies=not file.manifest.purifier.off,
        features=answer_features(file, twin),
        plan=partial(defended_plan, twin.test),
        lent=not twin.has_features,
    )


def bare_target(file: ModelFile, twin: Twin) -> Target:
    """The classifier inside the file, alone."""
    return Target(
        name="bare",
        system=BareSystem(file, threads=1),
        view=bare_view(twin),
        classify=twin.classify,
        features=(lambda images, path: twin.features(images),) if twin.has_features else (),  # noqa: ARG005
    )
