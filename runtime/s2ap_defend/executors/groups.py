"""Which stages of a file are asked about the same images at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import SequentialTest
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, member_scope, wave_sizes

__all__ = ["PURIFY", "Group", "Joining", "asked_groups", "waves_of"]

Joining = Literal["none", "same images", "step", "file"]
"""Which stages share an engine: none; those that are asked about the same images; those of one step, the purifier and
who sees what it made among them; or all of the file, which are asked at once then."""

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
        behind: Those of them that read what the purifier of the group made.
    """

    step: int
    sees: Sees
    votes: bool
    scopes: tuple[str, ...]
    behind: tuple[str, ...] = ()


def waves_of(test: SequentialTest, purify: Purify) -> list[range]:
    """The members that each step asks; none in the step PURIFY, where there is one.

    Waves are those of the file but for members that only flagged inputs ask, because nothing is left undecided before
    them: where no vote can end early these are one wave, which nobody else waits in.
    """
    ends = list(accumulate(wave_sizes(test, purify)))
    if test.last + 1 < test.members and not test.curtails:
        last = max(test.last + 1, ends[0])
        ends = sorted({*(end for end in ends if end < last), last, test.members})
    waves = [range(begin, end) for begin, end in pairwise((0, *ends))]
    if purify == "suspicious":
        waves.insert(PURIFY, range(ends[0], ends[0]))
    return waves


def asked_groups(test: SequentialTest, sees: Sequence[Sees], purify: Purify, *, joining: Joining) -> list[Group]:
    """The groups of a file's stages in the order in which they are asked.

    Args:
        test: Its tables.
        sees: What each of its members sees.
        purify: Which images are purified.
        joining: Which stages share an engine.
    """
    asked: list[tuple[int, Sees, bool, str]] = []
    if purify == "always":
        asked.append((0, "raw", False, PURIFIER))
    asked.append((0, "purified" if purify == "always" else "raw", False, CLASSIFIER))
    if purify == "suspicious":
        asked += [(PURIFY, "raw", False, PURIFIER), (PURIFY, "purified", False, CLASSIFIER_AGAIN)]
    for step, wave in enumerate(waves_of(test, purify)):
        for i in wave:
            eye = "raw" if purify == "off" else sees[i]
            asked.append((step, eye, step > 0 and bool(test.vote_weights[i]), member_scope(i)))
    if joining == "file":
        asked = [(0, eye, False, scope) for _, eye, _, scope in asked]
    purifying = {step for step, _, _, scope in asked if scope == PURIFIER} if joining in {"step", "file"} else set()
    found: dict[tuple[int, Sees, bool, str], list[tuple[str, Sees]]] = {}
    for step, eye, votes, scope in asked:
        # of all stages a purifier takes the fewest images at once, so it is alone where images are cut to fit a cache
        own = scope if joining == "none" or (scope == PURIFIER and step not in purifying) else ""
        found.setdefault((step, "raw" if step in purifying else eye, votes, own), []).append((scope, eye))
    return [
        Group(
            step,
            eye,
            votes,
            tuple(scope for scope, _ in of),
            tuple(scope for scope, seen in of if seen == "purified") if step in purifying else (),
        )
        for (step, eye, votes, _), of in found.items()
    ]
