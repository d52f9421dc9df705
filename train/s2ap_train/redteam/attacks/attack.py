"""What an attack of the red team is: a function of a target and a task, with what it assumes in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from s2ap_defend.types import Float32
from s2ap_train.adaptive.budget import AdaptiveBudget
from s2ap_train.adaptive.goals import Goal
from s2ap_train.attacks.catalogue import Norm
from s2ap_train.data import ImageSet
from s2ap_train.jobs import Found
from s2ap_train.redteam.target import Target

__all__ = ["Goal", "Knowledge", "Need", "RedTeamAttack", "Task"]

Knowledge = Literal["nothing", "classifier", "other networks", "answers", "everything"]
"""What the attacker knows: a control without attacker | the bare classifier | networks that it trained itself | what
the system answers to any image | every weight, table and constant."""

Need = Literal["surrogates", "server", "library"]
"""What an attack needs that a model file does not have: networks trained by the attacker, a server that answers, an
optional library."""


@dataclass(frozen=True)
class Task:
    """What an attack is given, its target aside.

    Attributes:
        data: Clean images and true labels; images that are misclassified anyway are in it.
        eps: l_inf budget, pixels in [0, 1].
        l2: l2 budget, pixels in [0, 1].
        pixels: l0 budget: positions (row, column) that may change.
        seed: Of everything random; another for every shard of the images.
        budget: Steps, restarts and queries.
        known: Images, like `data`'s, that attacks named in `after` have found; those that did not run are not there.
        surrogates: Networks that the attacker trained itself: images -> logits. The first is its base, the others its
            members. Empty: there are none.
        server: Address of a server that serves the same file; None: there is none.
    """

    data: ImageSet
    eps: float
    l2: float
    pixels: int
    seed: int
    budget: AdaptiveBudget
    known: Mapping[str, Float32] = field(default_factory=dict)
    surrogates: tuple[nn.Module, ...] = ()
    server: str | None = None


@dataclass(frozen=True)
class RedTeamAttack:
    """An attack by name.

    Attributes:
        name: As it is asked for and reported.
        run: The attack: an image for every one of the task, inside the budget of its norm, and notes that the report
            shows: settings, queries, which part broke how many.
        goal: What counts as its success.
        knows: What the attacker knows.
        norm: Norm of its budget: 'linf', 'l2' or 'l0'; None: a control that keeps to none.
        assumes: One sentence for the report: what the attacker does and what it needs for it.
        source: Paper.
        needs_test: Whether it attacks members and test, so that there is nothing to attack in a bare classifier.
        needs: What it needs that the file does not have.
        after: Attacks whose images it starts from.
        weight: Its time, roughly, against others; long ones are started first.
        version: Of the code, where it is no part of this package: what another version found is found again.
    """

    name: str
    run: Callable[[Target, Task], Found]
    goal: Goal
    knows: Knowledge
    norm: Norm | None
    assumes: str
    source: str
    needs_test: bool = False
    needs: Need | None = None
    after: tuple[str, ...] = ()
    weight: float = 1.0
    version: str = ""
