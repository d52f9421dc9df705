"""The same networks with less and less defence, each attacked with full knowledge of it, on the same images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from s2ap_defend.progress import Reporter
from s2ap_defend.types import Bool, Float32
from s2ap_train.adaptive.search import AdaptiveBudget, adaptive_attack
from s2ap_train.attacks.oblivious import pgd
from s2ap_train.compute.threads import one_thread
from s2ap_train.jobs import Done, Found, Job, ResumableJob, Store, Workers, run_jobs, run_resumable
from s2ap_train.redteam.ablation.ablation_rows import ABLATION_VERSION, Row, milliseconds, open_row
from s2ap_train.redteam.attacks.attack import Task
from s2ap_train.redteam.results import AblationRow
from s2ap_train.redteam.target import Target
from s2ap_train.statistics.figures import clopper_pearson

__all__ = [
    "Ablation",
    "MeasuredRow",
    "ablation_jobs",
    "attack_row",
    "joined_rows",
    "judge_row",
    "measure_ablation",
    "row_budget",
]


@dataclass(frozen=True)
class MeasuredRow:
    """A row and, image by image, what every attack on any row left of it.

    Attributes:
        row: For the table.
        right: Answered unflagged and right, or flagged, or not answered, under all [N].
        label_right: Answered and right, flagged or not, under all [N].
    """

    row: AblationRow
    right: Bool
    label_right: Bool


@dataclass(frozen=True)
class Ablation:
    """All rows, least defended first.

    Attributes:
        rows: By name.
        found: What was found of every row that was attacked here, by row.
    """

    rows: Mapping[str, MeasuredRow]
    found: Mapping[str, Float32]


def attack_row(target: Target, task: Task) -> Found:
    """Attack a row with full knowledge of it: PGD on its bare classifier, then its plan, on what that and `known` left.

    See `row_budget` for the work. The notes say how many images each descent broke: `broken_by`.
    """
    budget = row_budget(target, task.budget)
    result = adaptive_attack(
        target.system,
        target.view,
        target.plan(budget),
        task.data,
        eps=task.eps,
        budget=budget,
        seed=task.seed,
        candidates=[_oblivious(target, task), *task.known.values()],
    )
    return Found(result.images, {"broken_by": result.broken_by, "restarts": budget.restarts})


def row_budget(target: Target, budget: AdaptiveBudget) -> AdaptiveBudget:
    """The work of the attack on a row.

    Chains are run a third of the restarts: what decides there is the number of descents, and each costs up to fifty
    times one on a network. Steps through a purifier without a test behind it are as many as without it, so that the two
    can be compared; not so of a budget that is not thorough.
    """
    if target.purifies or target.members:
        budget = replace(budget, restarts=-(-budget.restarts // 3))
    if budget.thorough and target.purifies and target.test is None:
        budget = replace(budget, steps=max(budget.steps, budget.cheap_steps))
    return budget


def judge_row(
    target: Target, tasks: Sequence[Task], own: Float32, others: Sequence[Float32], *, note: str = ""
) -> MeasuredRow:
    """What all attacks leave of one row; its milliseconds are not measured here.

    Args:
        target: The row.
        tasks: Shards of the images, in order; PGD on the row's bare classifier is made on each.
        own: Images that were found for this row [N, C, H, W].
        others: Images that were found for other rows, or by other attacks.
        note: What a reader must know of the row.
    """
    images, labels = (np.concatenate([getattr(task.data, name) for task in tasks]) for name in ("images", "labels"))
    oblivious = np.concatenate([_oblivious(target, task) for task in tasks])
    clean, attacked, adaptive, *rest = (target.system(x, labels) for x in (images, oblivious, own, *others))
    all_of_them = (clean, attacked, adaptive, *rest)
    right = ~np.any([one.success for one in all_of_them], axis=0)
    label_right = np.all([one.right(labels) for one in all_of_them], axis=0)
    row = AblationRow(
        name=target.name,
        clean_accuracy=float(clean.right(labels).mean()),
        oblivious_accuracy=float(1.0 - attacked.success.mean()),
        robust_accuracy=float(right.mean()),
        interval=clopper_pearson(int(right.sum()), len(right)),
        label_accuracy=float(label_right.mean()),
        clean_flagged=float(clean.flagged.mean()),
        flagged=float(adaptive.flagged.mean()),
        members_used=float(clean.members_used.mean()),
        milliseconds=None,
        note=note,
    )
    return MeasuredRow(row, right, label_right)


def ablation_jobs(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    *,
    attacked: Mapping[str, Sequence[Float32]],
    until: float | None = None,
    at: str = "",
) -> list[ResumableJob]:
    """Attacks on every row that is neither attacked already nor broken exactly where another is.

    Args:
        rows: The rows.
        tasks: Shards of the images, in order.
        attacked: Images [N, C, H, W] that were found already, by row, those of the attack that knows everything of it
            last; every other row starts from all of them.
        until: Time after which none is begun.
        at: What tells these jobs from others of the same rows, such as another eps.
    """
    known = [images for found in attacked.values() for images in found]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(images).tobytes() for images in known)).hexdigest()
    return [
        ResumableJob(
            name=_job_name(row.name, number, at),
            function=_attacked,
            arguments=_given(row, replace(task, known={str(i): x[shard] for i, x in enumerate(known)})),
            decides=(ABLATION_VERSION, *row.decides, shard.start, shard.stop, task.eps, digest),
            weight=8.0 if row.stage is None else 1.0,
            until=until,
        )
        for row in rows
        if row.name not in attacked and row.same_as is None
        for number, (task, shard) in enumerate(zip(tasks, _shards(tasks), strict=True))
    ]


def measure_ablation(
    rows: Sequence[Row],
    tasks: Sequence[Task],
    *,
    attacked: Mapping[str, Sequence[Float32]],
    store: Store,
    reporter: Reporter,
    workers: Workers = None,
    until: float | None = None,
) -> Ablation:
    """Attack every row, try what was found for each on all others, and time them.

    Rows that could not be attacked to the end before `until` are left out.

    Args:
        rows: The rows, least defended first.
        tasks: Shards of the images, in order, with budgets; their `known` is not used.
        attacked: As in `ablation_jobs`: of the rows that the red team has attacked.
        store: Of what is found.
        reporter: Shows every job.
        workers: Processes; None takes one a core.
        until: Time after which nothing is begun.

    Raises:
        RecipeError: If a process was killed, or Ray is not there.
        ModelFileError: If the file or a stage cannot be used.
    """
    attacks = ablation_jobs(rows, tasks, attacked=attacked, until=until)
    done = run_resumable(attacks, store, reporter, title="ablation", workers=workers)
    found = joined_rows(rows, len(tasks), done)
    own = {name: images[-1] for name, images in attacked.items()} | found
    own |= {row.name: own[row.same_as] for row in rows if row.same_as in own}
    pool = [*(images for known in attacked.values() for images in known), *found.values()]
    able = [row for row in rows if row.name in own]
    jobs = [
        Job(
            row.name,
            _judged,
            _given(
                replace(row, note=_note(row, tasks, done)),
                list(tasks),
                own[row.name],
                [images for images in pool if images is not own[row.name]],
            ),
        )
        for row in able
    ]
    judged: dict[str, MeasuredRow] = {}
    with reporter.step("ablation, all on all", len(jobs)) as step:
        for job, measured in run_jobs(jobs, workers):
            judged[job.name] = measured
            step.advance(job.name)
    with reporter.step("milliseconds", len(able)) as step, one_thread():
        for row in able:
            timed = milliseconds(row, tasks[0].data.images)
            judged[row.name] = replace(judged[row.name], row=replace(judged[row.name].row, milliseconds=timed))
            step.advance(row.name)
    return Ablation({row.name: judged[row.name] for row in able}, found)


def _note(row: Row, tasks: Sequence[Task], done: Done) -> str:
    """What a reader must know of a row, and whether it was attacked with fewer restarts than others."""
    found, asked = done.get(_job_name(row.name, 0)), tasks[0].budget.restarts
    restarts = asked if found is None else found.notes["restarts"]
    fewer = f"attacked with {restarts} of {asked} restarts" if restarts < asked else ""
    return "; ".join(note for note in (row.note, fewer) if note)


def joined_rows(rows: Sequence[Row], shards: int, done: Done, at: str = "") -> dict[str, Float32]:
    """Images of all shards, by row; a row of which a shard is missing is left out."""
    found = {}
    for row in rows:
        names = [_job_name(row.name, number, at) for number in range(shards)]
        if all(name in done for name in names):
            found[row.name] = np.concatenate([done[name].images for name in names])
    return found


def _job_name(row: str, number: int, at: str = "") -> str:
    """Name of the job that attacks one shard of a row."""
    return f"{row}{at}, part {number + 1}"


def _shards(tasks: Sequence[Task]) -> list[slice]:
    """Rows of each task among all images."""
    ends = accumulate((len(task.data) for task in tasks), initial=0)
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _given(*values: Any) -> Callable[..., tuple[Any, ...]]:  # noqa: ANN401
    """Arguments that are known beforehand, whatever is found meanwhile."""
    return lambda *_: values


def _attacked(row: Row, task: Task) -> Found:
    """One row on one shard; also called in other processes."""
    with one_thread():
        return attack_row(open_row(row), task)


def _judged(row: Row, tasks: Sequence[Task], own: Float32, others: Sequence[Float32]) -> MeasuredRow:
    """One row under everything; also called in other processes."""
    with one_thread():
        return judge_row(open_row(row), tasks, own, others, note=row.note)


def _oblivious(target: Target, task: Task) -> Float32:
    return pgd(target.classify, task.data, eps=task.eps, seed=task.seed)
