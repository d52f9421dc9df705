"""What attacked images reach on the file: figures of each attack, and the worst case per image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from s2ap_defend.types import Bool, Int64
from s2ap_train.adaptive.goals import reached
from s2ap_train.data import ImageSet
from s2ap_train.redteam.attacks.attack import RedTeamAttack
from s2ap_train.redteam.attacks.oblivious import SEARCH
from s2ap_train.redteam.campaign import Attacked
from s2ap_train.redteam.results import AttackRow
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.figures import WorstCase, attack_figures, clopper_pearson, worst_case
from s2ap_train.statistics.outcome import Outcome

__all__ = ["CLEAN", "Judged", "attack_rows", "broken", "in_the_ball", "judged", "worst_of"]

CLEAN = "clean"


@dataclass(frozen=True)
class Judged:
    """One target's answers to the clean images and to those of every attack, by attack, 'clean' first."""

    outcomes: Mapping[str, Outcome]
    attacked: Mapping[str, Attacked]

    @property
    def clean(self) -> Outcome:
        """Answers to the clean images."""
        return self.outcomes[CLEAN]


def judged(target: Target, data: ImageSet, attacked: Mapping[str, Attacked]) -> Judged:
    """Ask a target about everything that was found."""
    outcomes = {CLEAN: target.system(data.images, data.labels)}
    outcomes |= {name: target.system(one.images, data.labels) for name, one in attacked.items()}
    return Judged(outcomes, attacked)


def attack_rows(
    attacks: Mapping[str, RedTeamAttack], defended: Judged, bare: Judged, labels: Int64
) -> tuple[AttackRow, ...]:
    """The table of attacks; each is counted on the images that it ran on."""
    rows = []
    for name, one in defended.attacked.items():
        attack, ran, outcome = attacks[name], one.ran, defended.outcomes[name]
        hits = reached(attack.goal, outcome, labels, defended.clean.right(labels) & ~defended.clean.flagged)[ran]
        other = bare.attacked.get(name)
        rows.append(
            AttackRow(
                name=name,
                goal=attack.goal,
                knows=attack.knows,
                norm=attack.norm,
                assumes=attack.assumes,
                source=attack.source,
                samples=int(ran.sum()),
                reached=float(hits.mean()),
                reached_interval=clopper_pearson(int(hits.sum()), len(hits)),
                defended=attack_figures(
                    outcome.rows(ran), labels[ran], seconds=one.seconds, configuration=dict(one.notes)
                ),
                bare=None
                if other is None
                else attack_figures(
                    bare.outcomes[name].rows(other.ran),
                    labels[other.ran],
                    seconds=other.seconds,
                    configuration=dict(other.notes),
                ),
            )
        )
    return tuple(rows)


def in_the_ball(attacks: Mapping[str, RedTeamAttack], judgement: Judged, norm: str = "linf") -> dict[str, Outcome]:
    """Outcomes of the clean images and of all attacks in a norm's ball, whatever those attacks wanted."""
    return {CLEAN: judgement.clean} | {
        name: judgement.outcomes[name] for name in judgement.attacked if attacks[name].norm == norm
    }


def worst_of(attacks: Mapping[str, RedTeamAttack], judgement: Judged, labels: Int64, norm: str = "linf") -> WorstCase:
    """Per image the worst of the clean input and of all attacks in a norm's ball, whatever they wanted.

    The search starts from what all others found; it is not counted against them where one alone broke an image.
    """
    outcomes = in_the_ball(attacks, judgement, norm)
    worst = worst_case(outcomes, labels)
    if SEARCH.name not in outcomes:
        return worst
    others = worst_case({name: one for name, one in outcomes.items() if name != SEARCH.name}, labels)
    alone = {**others.broken_only_by, SEARCH.name: worst.broken_only_by[SEARCH.name]}
    return replace(worst, broken_only_by=alone)


def broken(outcomes: Mapping[str, Outcome]) -> Bool:
    """Images that one outcome at least lost to the attacker [N]."""
    return np.asarray(np.any([outcome.success for outcome in outcomes.values()], axis=0))
