"""The same networks with less and less defence, each attacked with full knowledge of it, on the same images."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Float32
from s2ap_train.adaptive.goals import Goal
from s2ap_train.adaptive.search import AdaptiveBudget, Descent, adaptive_attack, defended_plan
from s2ap_train.attacks.oblivious import pgd
from s2ap_train.compute.threads import one_thread
from s2ap_train.jobs import Done, Found, Job, ResumableJob, Store, Workers, run_jobs, run_resumable
from s2ap_train.redteam.ablation.ablation_rows import ABLATION_VERSION, Row, cost, milliseconds, open_row
from s2ap_train.redteam.ablation.measured import MeasuredRow
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.campaign import SHARD
from s2ap_train.redteam.rows import AblationRow
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.figures import Headlines

__all__ = ["Effort", "ablation_jobs", "attack_row", "joined_rows", "judge_row", "measure_ablation"]


@dataclass(frozen=True)
class Effort:
    """Work that a row is attacked with, at the least: that of the search on the file as it is served.

    Attributes:
        descents: On an image that resists them all.
        steps: Gradient steps of one descent, the longest.
    """

    descents: int
    steps: int

    @classmethod
    def of(cls, target: Target, budget: AdaptiveBudget, goal: Goal = "mislead") -> Effort:
        """The work of a target's own plan for a goal."""
        plan = _plan(target, budget, goal)
        steps = (budget.cheap_steps if one.path in {"none", "identity"} else budget.steps for one in plan)
        return cls(len(plan) * budget.restarts, max(steps))

    def budget(self, target: Target, budget: AdaptiveBudget, goal: Goal = "mislead") -> AdaptiveBudget:
        """The budget with which a target's plan is no less work: more restarts of a shorter plan, and as many steps."""
        restarts = -(-self.descents // len(_plan(target, budget, goal)))
        steps = {name: max(getattr(budget, name), self.steps) for name in ("steps", "cheap_steps")}
        return replace(budget, restarts=restarts, **steps)


def attack_row(target: Target, task: Task, effort: Effort, goal: Goal = "mislead") -> Found:
    """Attack a row with full knowledge of it: PGD on its bare classifier, then its plan, on what that and `known` left.

    The notes say how many images each descent broke, and the work: `broken_by`, `descents`, `steps`.
    """
    budget = effort.budget(target, task.budget, goal)
    result = adaptive_attack(
        target.system,
        target.view,
        _plan(target, budget, goal),
        task.data,
        eps=task.eps,
        budget=budget,
        seed=task.seed,
        candidates=[_oblivious(target, task), *task.known.values()],
        goal=goal,
    )
    done = Effort.of(target, budget, goal)
    return Found(result.images, {"broken_by": result.broken_by, "descents": done.descents, "steps": done.steps})


def judge_row(
    target: Target, tasks: Sequence[Task], own: Float32, others: Sequence[Float32], effort: Effort, *, note: str = ""
) -> MeasuredRow:
    """What all attacks leave of one row; its costs are not measured here.

    Args:
        target: The row.
        tasks: Shards of the images, in order; PGD on the row's bare classifier is made on each.
        own: Images that were found for this row [N, C, H, W].
        others: Images that were found for other rows, or by other attacks.
        effort: That it was attacked with.
        note: What a reader must know of the row.
    """
    images, labels = (np.concatenate([getattr(task.data, name) for task in tasks]) for name in ("images", "labels"))
    oblivious = np.concatenate([_oblivious(target, task) for task in tasks])
    clean, attacked, adaptive, *rest = (target.system(x, labels) for x in (images, oblivious, own, *others))
    all_of_them = (clean, attacked, adaptive, *rest)
    kept = ~np.any([one.success for one in all_of_them], axis=0)
    label_right = np.all([one.right(labels) for one in all_of_them], axis=0)
    row = AblationRow(
        name=target.name,
        clean_accuracy=float(clean.right(labels).mean()),
        clean_flagged=float(clean.flagged.mean()),
        oblivious_accuracy=float(1.0 - attacked.success.mean()),
        worst_case=Headlines.of(label_right, kept),
        flagged=float(adaptive.flagged.mean()),
        members_used=float(clean.members_used.mean()),
        descents=effort.descents,
        steps=effort.steps,
        cost=math.nan,
        milliseconds=None,
        note=note,
    )
    return MeasuredRow(row, clean.right(labels), label_right, kept)


def ablation_jobs(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    *,
    attacked: Mapping[str, Sequence[Float32]],
    effort: Effort,
    until: float | None = None,
    at: str = "",
) -> list[ResumableJob]:
    """Attacks on every row that is not broken exactly where another is, for every goal that it is still to meet.

    Args:
        rows: The rows.
        tasks: Shards of the images, in order.
        attacked: Images [N, C, H, W] that were found already by attacks that mislead, by row, those of the attack that
            knows everything of it last; every row starts from all of them.
        effort: Of every attack, at the least.
        until: Time after which none is begun.
        at: What tells these jobs from others of the same rows, such as another eps.
    """
    known = [images for found in attacked.values() for images in found]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(images).tobytes() for images in known)).hexdigest()
    return [
        ResumableJob(
            name=_job_name(row.name, goal, number, at),
            function=_attacked,
            arguments=_given(row, replace(task, known={str(i): x[shard] for i, x in enumerate(known)}), effort, goal),
            decides=(ABLATION_VERSION, *row.decides, goal, *astuple(effort), shard.start, shard.stop, task.eps, digest),
            weight=(8.0 if row.stage is None else 1.0) * len(task.data) / SHARD,
            until=until,
        )
        for row in rows
        for goal in _goals(row, attacked)
        for number, (task, shard) in enumerate(zip(tasks, _shards(tasks), strict=True))
    ]


def measure_ablation(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    *,
    attacked: Mapping[str, Sequence[Float32]],
    effort: Effort,
    store: Store,
    reporter: Reporter,
    workers: Workers = None,
    until: float | None = None,
) -> Mapping[str, MeasuredRow]:
    """Attack every row, try what was found for each on all others, and time them; the rows by name.

    Rows that could not be attacked to the end before `until` are left out.

    Args:
        rows: The rows, least defended first.
        tasks: Shards of the images, in order, with budgets; their `known` is not used.
        attacked: As in `ablation_jobs`: of the rows that the red team has attacked.
        effort: As there.
        store: Of what is found.
        reporter: Shows every job.
        workers: Processes; None takes one a core.
        until: Time after which nothing is begun.

    Raises:
        RecipeError: If a process was killed, or Ray is not there.
        ModelFileError: If the file or a stage cannot be used.
    """
    attacks = ablation_jobs(rows, tasks, attacked=attacked, effort=effort, until=until)
    done = run_resumable(attacks, store, reporter, title="ablation", workers=workers)
    found = joined_rows(rows, len(tasks), done, attacked=attacked)
    own = {name: images[0] for name, images in found.items()}
    own |= {row.name: attacked[row.name][-1] for row in rows if row.stage is None and row.name in attacked}
    own |= {row.name: own[row.same_as] for row in rows if row.same_as in own}
    pool = [images for known in (*attacked.values(), *found.values()) for images in known]
    able = [row for row in rows if row.name in own]
    jobs = [
        Job(
            row.name,
            _judged,
            _given(
                row,
                list(tasks),
                own[row.name],
                [images for images in pool if images is not own[row.name]],
                _work(row, done, effort),
            ),
        )
        for row in able
    ]
    judged: dict[str, MeasuredRow] = {}
    with reporter.step("ablation, all on all", len(jobs)) as step:
        for job, measured in run_jobs(jobs, workers):
            judged[job.name] = measured
            step.advance(job.name)
    with reporter.step("costs", len(able)) as step, one_thread():
        for row in able:
            images, one = tasks[0].data.images, judged[row.name]
            timed = replace(one.row, cost=cost(row, images), milliseconds=milliseconds(row, images))
            judged[row.name] = replace(one, row=timed)
            step.advance(row.name)
    return {row.name: judged[row.name] for row in able}


def _plan(target: Target, budget: AdaptiveBudget, goal: Goal) -> list[Descent]:
    """The descents for a goal; where nothing is flagged a wrong label is what misleads."""
    if goal == "mislead" or target.test is None:
        return target.plan(budget)
    return defended_plan(target.test, budget, goal)


def _work(row: Row, done: Done, effort: Effort) -> Effort:
    """The work of the attack on a row; of one that was attacked elsewhere, that of the search on the file."""
    found = done.get(_job_name(row.same_as or row.name, row.goals[0], 0))
    return effort if found is None else Effort(found.notes["descents"], found.notes["steps"])


def joined_rows(
    rows: Sequence[Row], shards: int, done: Done, *, attacked: Collection[str] = (), at: str = ""
) -> dict[str, list[Float32]]:
    """Images of all shards, by row, for each goal of its attacks; a row of which a shard is missing is left out."""
    found = {}
    for row in rows:
        goals = _goals(row, attacked)
        names = [[_job_name(row.name, goal, number, at) for number in range(shards)] for goal in goals]
        if goals and all(name in done for parts in names for name in parts):
            found[row.name] = [np.concatenate([done[name].images for name in parts]) for parts in names]
    return found


def _goals(row: Row, attacked: Collection[str]) -> list[Goal]:
    """What a row is still to be attacked for; a chain that was `attacked` was misled with as much work already."""
    done = row.stage is None and row.name in attacked
    return [goal for goal in row.goals if row.same_as is None and not (goal == "mislead" and done)]


def _job_name(row: str, goal: Goal, number: int, at: str = "") -> str:
    """Name of the job that attacks one shard of a row."""
    aim = "" if goal == "mislead" else f" for a {goal}"
    return f"{row}{at}{aim}, part {number + 1}"


def _shards(tasks: Sequence[Task]) -> list[slice]:
    """Rows of each task among all images."""
    ends = accumulate((len(task.data) for task in tasks), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _given(*values: Any) -> Callable[..., tuple[Any, ...]]:  # noqa: ANN401
    """Arguments that are known beforehand, whatever is found meanwhile."""
    return lambda *_: values


def _attacked(row: Row, task: Task, effort: Effort, goal: Goal) -> Found:
    """One row on one shard; also called in other processes."""
    with one_thread():
        return attack_row(open_row(row), task, effort, goal)


def _judged(row: Row, tasks: Sequence[Task], own: Float32, others: Sequence[Float32], effort: Effort) -> MeasuredRow:
    """One row under everything; also called in other processes."""
    with one_thread():
        return judge_row(open_row(row), tasks, own, others, effort, note=row.note)


def _oblivious(target: Target, task: Task) -> Float32:
    return pgd(target.classify, task.data, eps=task.eps, seed=task.seed)
