"""The further runs that curves and sanity checks need, and what they say of the attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from s2ap_defend.types import Bool
from s2ap_train.jobs import Done, ResumableJob
from s2ap_train.redteam.ablation.ablation import ablation_jobs, joined_rows
from s2ap_train.redteam.ablation.ablation_rows import Row, open_row, rows_of
from s2ap_train.redteam.ablation.names import BARE
from s2ap_train.redteam.ablation.networks import Networks
from s2ap_train.redteam.ablation.run import served_effort
from s2ap_train.redteam.attacks.attack import RedTeamAttack, Task
from s2ap_train.redteam.campaign import Setup, probe_jobs
from s2ap_train.redteam.checks.checks import Successes, probes_of, sanity_checks
from s2ap_train.redteam.checks.curves import curves
from s2ap_train.redteam.checks.plausibility import best_known, plausibility_check
from s2ap_train.redteam.judging import Judged, broken, in_the_ball
from s2ap_train.redteam.plan import Plan
from s2ap_train.redteam.probes import Probe, judge_probes
from s2ap_train.redteam.results import Check, Curves
from s2ap_train.redteam.target import Target

__all__ = ["CurvesAndChecks", "check_jobs", "judge_checks"]

_PROBED = {"quick": 24, "standard": 40, "full": 60}
"""Images of curves and sanity checks, by depth."""
_AT_HALF = " at half eps"


@dataclass(frozen=True)
class CurvesAndChecks:
    """Curves and checks, and what of them is missing."""

    curves: Curves | None = None
    checks: tuple[Check, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)


def check_jobs(setup: Setup, plan: Plan, networks: Networks, data_name: str, until: float | None) -> list[ResumableJob]:
    """The further runs that curves and checks need; none of them starts from what an attack found.

    Args:
        setup: Of the attacks.
        plan: Its depth decides how much is run; 'attacks': nothing.
        networks: Classifiers that are attacked at half eps, for data without published figures.
        data_name: Name of the data.
        until: Time after which none is begun.
    """
    if _nothing(plan):
        return []
    jobs = probe_jobs(setup, _probes(plan), images=_PROBED[plan.depth], until=until)
    rows = _compared(setup, plan, networks, data_name)
    halves = [replace(task, eps=task.eps / 2) for task in _tasks(setup)]
    if not rows:
        return jobs
    return jobs + ablation_jobs(rows, halves, attacked={}, effort=served_effort(setup), until=until, at=_AT_HALF)


def judge_checks(
    setup: Setup,
    plan: Plan,
    target: Target,
    judgement: Judged,
    attacks: Mapping[str, RedTeamAttack],
    done: Done,
    *,
    networks: Networks,
    data_name: str,
) -> CurvesAndChecks:
    """Curves and checks: what the runs of `check_jobs` and the attacks say of themselves.

    Args:
        setup: Of the attacks.
        plan: As for `check_jobs`, like `networks` and `data_name`.
        target: The defended file.
        judgement: What the attacks reached there.
        attacks: Those that ran, by name.
        done: What the jobs found, by name; a job whose time was over is not there.
        networks: See `plan`.
        data_name: See `plan`.
    """
    if _nothing(plan):
        return CurvesAndChecks()
    images, probes = min(_PROBED[plan.depth], len(setup.data)), _probes(plan)
    data, first = setup.data.subset(slice(0, images)), np.arange(images)
    probed = judge_probes(target.system, data, probes, done)
    whole = {name: attacks[name] for name, one in judgement.attacked.items() if one.ran.all()}
    outcomes = {name: judgement.outcomes[name] for name in whole}
    successes = Successes(whole, {name: one.success for name, one in outcomes.items()}, judgement.clean.success)
    ball = in_the_ball(attacks, judgement)
    measured = _kept_at_half(setup, _compared(setup, plan, networks, data_name), done)
    plausible = plausibility_check(~broken(ball), data=data_name, eps=plan.eps, measured=measured)
    found = [(plan.eps, one.rows(first)) for one in ball.values()]
    missing = [probe.name for probe in probes if probe.name not in done]
    return CurvesAndChecks(
        curves=curves(judgement.clean.rows(first), data.labels, probed, found=found),
        checks=sanity_checks(successes, probed, plausibility=plausible),
        not_run={"curves and checks": f"the time limit was over before {', '.join(missing)}"} if missing else {},
    )


def _nothing(plan: Plan) -> bool:
    return plan.depth == "attacks" or plan.eps == 0.0


def _probes(plan: Plan) -> tuple[Probe, ...]:
    return probes_of(plan.eps, plan.budget, quick=plan.depth == "quick")


def _tasks(setup: Setup) -> list[Task]:
    return [setup.task(rows) for rows in setup.shards()]


def _compared(setup: Setup, plan: Plan, networks: Networks, data_name: str) -> list[Row]:
    """Single classifiers that the defence is compared with at half eps; none where a figure is published."""
    if best_known(data_name, plan.eps / 2) is not None:
        return []
    return [row for row in rows_of(setup.model, networks.stages) if row.stage is not None and row.name != BARE]


def _kept_at_half(setup: Setup, rows: Sequence[Row], done: Done) -> dict[str, Bool]:
    """Images that single classifiers keep at half the radius [N], by row, where all shards were attacked."""
    kept, found, data = {}, joined_rows(rows, len(setup.shards()), done, at=_AT_HALF), setup.data
    for row in rows:
        if row.name in found:
            system, (images,) = open_row(row).system, found[row.name]
            kept[row.name] = ~(system(images, data.labels).success | system(data.images, data.labels).success)
    return kept
