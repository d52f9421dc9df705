"""Which stages of a file are asked about the same images at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope, wave_sizes

__all__ = ["PURIFY", "Group", "asked_groups", "waves_of"]

PURIFY = 1
"""Step in which suspicious images are purified, where only these are; waves are numbered around it."""


@dataclass(frozen=True)
class Group:
    """Stages of one step that are asked about the same images: one engine can run them.

    Attributes:
        step: When.
        sees: Which image they read.
        votes: Whether they are asked for the vote on flagged images; of later waves.
        scopes: Theirs, members in the order in which they are asked.
    """

    step: int
    sees: Sees
    votes: bool
    scopes: tuple[str, ...]


def waves_of(test: SequentialTest, purify: Purify) -> list[range]:
    """The members that each step asks; none in the step PURIFY, where there is one."""
    sizes = list(wave_sizes(test, purify))
    if purify == "suspicious":
        sizes.insert(PURIFY, 0)
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


def asked_groups(test: SequentialTest, sees: Sequence[Sees], purify: Purify, *, joined: bool) -> list[Group]:
    """The groups of a file's stages in the order in which they are asked.

    Args:
        test: Its tables.
        sees: What each of its members sees.
        purify: Which images are purified.
        joined: Whether stages share an engine where they can; otherwise each is a group.
    """
    found: dict[tuple[int, Sees, bool, str], list[str]] = {}

    def add(step: int, eye: Sees, scope: str, *, votes: bool = False, alone: bool = False) -> None:
        own = scope if alone or not joined else ""
        found.setdefault((step, eye, votes, own), []).append(scope)

    if purify == "always":
        add(0, "raw", PURIFIER, alone=True)  # of all stages it takes the fewest images at once
    add(0, "purified" if purify == "always" else "raw", CLASSIFIER)
    if purify == "suspicious":
        add(PURIFY, "raw", PURIFIER, alone=True)
        add(PURIFY, "purified", CLASSIFIER_AGAIN)
    for step, wave in enumerate(waves_of(test, purify)):
        for i in wave:
            eye = "raw" if purify == "off" else sees[i]
            add(step, eye, member_scope(i), votes=step > 0 and bool(test.vote_weights[i]))
    return [Group(step, eye, votes, tuple(scopes)) for (step, eye, votes, _), scopes in found.items()]
