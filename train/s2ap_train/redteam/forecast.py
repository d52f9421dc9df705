"""How much of an evaluation is stored, and how long the rest takes: a timed gradient, times what attacks compute."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from s2ap_defend.types import Float32
from s2ap_train.compute.threads import one_thread
from s2ap_train.jobs import ResumableJob, stored_jobs
from s2ap_train.redteam.ablation.ablation import Effort, ablation_jobs
from s2ap_train.redteam.ablation.ablation_rows import served_row
from s2ap_train.redteam.ablation.names import BARE
from s2ap_train.redteam.ablation.run import ablation_asked, served_effort
from s2ap_train.redteam.campaign import SHARD
from s2ap_train.redteam.judging import Judged, judged
from s2ap_train.redteam.preparation import Prepared
from s2ap_train.redteam.target import Target, open_targets

__all__ = ["Left", "what_is_left"]

_TIMED = 8  # images of a timed gradient
_COMPUTED = 0.021
"""Gradients an image that an attack of weight 1 computes, of those of the search on the file: its descents times their
steps. Measured on a user's ResNet with a purifier; the rest are not needed, as the images have fallen."""
_JOB_S, _ROW_S = 0.5, 3.0
"""Seconds that a job takes however small its network, and a row of the ablation to be judged and timed."""


@dataclass(frozen=True)
class Left:
    """What is left to do of an evaluation.

    Attributes:
        weight: Of the jobs that are not stored.
        whole: Of all jobs.
        seconds: Of one core.
    """

    weight: float
    whole: float
    seconds: float

    @property
    def stored_share(self) -> float:
        """Share of the work that is stored."""
        return 1.0 - self.weight / self.whole if self.whole else 1.0


def what_is_left(made: Prepared, *, ablation: bool = True) -> Left:
    """Look which jobs are stored, those of the ablation as well where all that it starts from is, and time the rest.

    A rough figure: how soon images fall is not known. Times are those of the processor, so other programs on the
    machine change them little.

    Args:
        made: The evaluation.
        ablation: Whether the ablation is measured.
    """
    with one_thread():
        setup, done = made.setup, stored_jobs(made.jobs, made.store)
        defended, _ = open_targets(setup.model)
        left = [job for job in made.jobs if job.name not in done]
        whole, effort, rows = [*made.jobs], served_effort(setup), 0
        if ablation:
            found = made.found(done)
            clean = judged(defended, setup.data, {}).outcomes
            asked = ablation_asked(
                setup, made.networks, Judged(clean, found.on_file), Judged({}, found.on_bare), found.attacks
            )
            tasks, rows = [setup.task(shard) for shard in setup.shards()], len(asked.rows)
            attacked = (
                {BARE: [setup.data.images], served_row(made.file): [setup.data.images]} if left else asked.attacked
            )
            jobs = ablation_jobs(asked.rows, tasks, attacked=attacked, effort=effort)
            stored = {} if left else stored_jobs(jobs, made.store)
            whole, left = [*whole, *jobs], [*left, *(job for job in jobs if job.name not in stored)]
        weight = _weight(left)
        computed = weight * SHARD * _gradients(effort) * _gradient_seconds(defended, setup.data.images[:_TIMED])
        return Left(weight, _weight(whole), computed + _JOB_S * len(left) + _ROW_S * rows)


def _gradients(effort: Effort) -> float:
    return _COMPUTED * effort.descents * effort.steps


def _weight(jobs: Iterable[ResumableJob]) -> float:
    return sum(job.weight for job in jobs)


def _gradient_seconds(target: Target, images: Float32) -> float:
    """Processor time of a gradient through everything with respect to one image, the second of two."""
    for _ in range(2):
        x = torch.from_numpy(images).requires_grad_()
        began = time.process_time()
        classifier, members = target.view(x, target.path, None)
        total = classifier.sum() if members is None else classifier.sum() + members.sum()
        total.backward()  # type: ignore[no-untyped-call]
        seconds = time.process_time() - began
    return seconds / len(images)
