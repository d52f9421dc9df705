"""Time of a mask search with S2AP over that of its base, as ratios in one process."""

import statistics
import time
from dataclasses import dataclass, replace

from s2ap_runs import Job, dense_network

from s2ap_train.compute import Compute, launch
from s2ap_train.compute.threads import one_thread
from s2ap_train.pruning import prune
from s2ap_train.pruning.score_pruning import ScorePruning
from s2ap_train.training import Run

STEPS = 10  # optimiser steps of a timed search


@dataclass(frozen=True)
class Overhead:
    """Time of the S2AP search over that of its base: median, least and largest of the rounds' ratios, and seconds."""

    base: str
    sparsity: float
    attack_steps: int
    ratio: float
    least: float
    largest: float
    seconds: float
    rounds: int


def overhead(job: Job, attack_steps: int, rounds: int) -> Overhead:
    """Time one mask search with and without S2AP in alternating rounds, in this process on one thread.

    On a CPU these are seconds of the processor, which other processes on the machine do not lengthen.
    """
    config, splits = job.recipe.pruning, job.recipe.load_data()
    assert isinstance(config, ScorePruning)  # noqa: S101  (checked by `Arm.recipe`)
    assert config.s2ap is not None  # noqa: S101
    training = replace(config.training, epochs=1, attack_steps=attack_steps, validation_steps=1)
    with_s2ap = replace(config, training=training, s2ap=replace(config.s2ap, warmup_epochs=0))
    part, few = splits.train.subset(slice(0, STEPS * training.batch_size)), splits.validation.subset(slice(0, 10))

    def seconds(compute: Compute, method: ScorePruning) -> float:
        dense = compute.place(dense_network(job))
        clock = time.process_time if compute.device.type == "cpu" else time.perf_counter
        began = clock()
        prune(dense, part.images, part.labels, (few.images, few.labels), method, run=Run(0, compute))
        return clock() - began

    def measure(compute: Compute) -> tuple[list[float], list[float]]:
        ratios, bases = [], []
        arms = [replace(with_s2ap, s2ap=None), with_s2ap]
        for number in range(rounds + 1):
            order = arms if number % 2 else arms[::-1]
            took = {id(arm): seconds(compute, arm) for arm in order}
            if number:  # the first round warms up
                bases.append(took[id(arms[0])])
                ratios.append(took[id(arms[1])] / bases[-1])
        return ratios, bases

    with one_thread():
        ratios, bases = launch(replace(job.recipe.compute, devices=1), measure)
    middle, base = statistics.median(ratios), statistics.median(bases)
    return Overhead(job.arm.base, job.arm.sparsity, attack_steps, middle, min(ratios), max(ratios), base, rounds)
