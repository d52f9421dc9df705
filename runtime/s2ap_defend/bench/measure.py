"""Time a defended file next to its bare classifier, its stages and the machine's ceilings, all in one run."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from onnx import ModelProto

from s2ap_defend.bench.asked import SAID, Run, Stages, cut_stages
from s2ap_defend.bench.ceilings import Ceilings, ceiling_variants, ceilings
from s2ap_defend.bench.choices import Clock
from s2ap_defend.bench.inside import Inside, Spent
from s2ap_defend.bench.measured import BARE, BatchTimes, Measured, OutsideParts, StageTime
from s2ap_defend.bench.memory import Memory, measure_memory
from s2ap_defend.bench.rounds import CLOCKS, Variant, alternate, exponent, latency, typical_round
from s2ap_defend.bench.steady import THREADS, measure_steady
from s2ap_defend.bench.traffic import Traffic
from s2ap_defend.bench.work import Work, count_work
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.engines import Device, Engine
from s2ap_defend.errors import EngineError
from s2ap_defend.executors import USUAL, ExecutorName
from s2ap_defend.model_file import ModelFile
from s2ap_defend.progress import Reporter
from s2ap_defend.stages import CLASSIFIER, PURIFIER
from s2ap_defend.types import Float32, Float64, Verdicts

WINDOW = 64
"""Images of a round, or those of one batch where that is larger, so that small batches see the same traffic."""

_SOAKED = 16  # images of the batches in a row


@dataclass(frozen=True)
class _Timed:
    """One batch size: seconds of every variant [rounds, calls], the stages' runs, where batches begin and end.

    `spent` says where executors spent them.
    """

    batch: int
    cuts: list[int]
    verdicts: Verdicts
    runs: list[Run]
    seconds: dict[str, Float64]
    spent: dict[ExecutorName, Spent]


def measure(
    file: ModelFile,
    traffic: Traffic,
    *,
    batches: Sequence[int],
    executors: Sequence[ExecutorName] = USUAL,
    device: Device = "auto",
    threads: int | None = None,
    clock: Clock = "wall",
    rounds: int = 20,
    soak: int = 0,
    reporter: Reporter,
) -> Measured:
    """Time a file.

    Args:
        file: The file.
        traffic: Its images.
        batches: Images of a call.
        executors: How the file is run.
        device: As of the engines.
        threads: As of the engines.
        clock: What is counted; the processor's time only where one thread of a CPU does the work.
        rounds: Rounds in which all variants take turns.
        soak: Batches of one image that each executor runs in a row, and then 8 threads with it; 0: none.
        reporter: Says what is going on.

    Raises:
        EngineError: If the device cannot be used, an engine fails, or the clock does not fit.
    """
    cut = cut_stages(file)
    stages = Stages.start(file, cut, device, threads)
    provider = stages.engines[CLASSIFIER].provider
    alone = threads == 1 and provider == "CPUExecutionProvider"
    if clock == "processor" and not alone:
        raise EngineError(
            f"the processor's time was asked for on {provider} with {threads or 'any number of'} threads; it means "
            "something for one thread of a CPU: use --device cpu --threads 1, or --clock wall"
        )
    work = {scope: count_work(stage) for scope, stage in cut.items()}
    started = {
        name: DefendedClassifier.load(file.path, device=device, threads=threads, executor=name) for name in executors
    }
    observed = {name: Inside(one, clock) for name, one in started.items()}
    limits = ceiling_variants(device, threads)
    sizes = sorted(set(batches))
    with reporter.step("Timing", len(sizes) * (rounds + 1)) as step:
        began = [now() for now in CLOCKS.values()]
        run = partial(alternate, rounds=rounds, clock=clock, after_round=step.advance)
        timed = [_timed(batch, traffic, stages, observed, limits, run) for batch in sizes]
        wall, processor = (now() - start for now, start in zip(CLOCKS.values(), began, strict=True))
    reached = ceilings({name: np.concatenate([one.seconds[name] for one in timed]) for name in limits})
    for one in started.values():
        one.executor.observe(None)
    found = tuple(_batch_times(one, executors, work, reached) for one in timed)
    steady = {}
    if soak:
        reporter.line(f"Running {soak:,} batches of one image in a row, and {THREADS} threads at once ...")
        steady = {name: measure_steady(one, traffic.first(WINDOW)[:_SOAKED], soak) for name, one in started.items()}
    reporter.line("Measuring memory, in a process for each ...")
    rates = {BARE: [one.bare.images_per_s for one in found]}
    rates |= {name: [one.executors[name].images_per_s for one in found] for name in executors}
    return Measured(
        provider=provider,
        clock=clock,
        rounds=rounds,
        waited=max(0.0, 1 - processor / wall) if alone else None,
        batches=found,
        work=work,
        ceilings=reached,
        exponents={name: exponent(sizes, np.divide(sizes, values).tolist()) for name, values in rates.items()},
        memory=_memory(file, cut[CLASSIFIER], traffic.first(sizes[-1]), executors, device, threads),
        steady=steady,
    )


def _timed(
    batch: int,
    traffic: Traffic,
    stages: Stages,
    observed: Mapping[ExecutorName, Inside],
    limits: Mapping[str, Variant],
    run_rounds: Callable[[Mapping[str, Variant]], dict[str, Float64]],
) -> _Timed:
    """Time one batch size."""
    images = traffic.first(max(batch, WINDOW) // batch * batch)
    cuts = list(range(0, len(images) + 1, batch))
    parts = [images[low:high] for low, high in pairwise(cuts)]
    runs = stages.runs(images)
    verdicts = Verdicts.concatenate([next(iter(observed.values()))(part) for part in parts])
    bare = stages.engines[CLASSIFIER]
    variants: dict[str, Variant] = {BARE: [partial(_ask, bare, part, SAID) for part in parts]}
    variants |= {name: [partial(run, part) for part in parts] for name, run in observed.items()}
    variants |= {run.scope: _calls(run, cuts) for run in runs}
    seconds = run_rounds({**variants, **limits})
    spent = {name: one.take(*seconds[name].shape) for name, one in observed.items()}
    return _Timed(batch, cuts, verdicts, runs, seconds, spent)


def _calls(run: Run, cuts: Sequence[int]) -> Variant:
    """A stage's calls of a round: of each batch, the rows that it is asked about, if any."""
    chosen = [np.flatnonzero(run.rows[low:high]) + low for low, high in pairwise(cuts)]
    return [partial(_ask, run.engine, run.images[rows], run.outputs) for rows in chosen if len(rows)]


def _ask(engine: Engine, images: Float32, outputs: Sequence[str]) -> object:
    return engine.run({"image": images}, outputs)


def _batch_times(
    timed: _Timed, executors: Sequence[ExecutorName], work: Mapping[str, Work | None], reached: Ceilings
) -> BatchTimes:
    calls, seconds, verdicts = len(timed.cuts) - 1, timed.seconds, timed.verdicts
    images = calls * timed.batch
    bare = seconds[BARE]
    floors = {run.scope: _floor_s(run, timed.cuts, work, reached) for run in timed.runs}
    counted = [value for value in floors.values() if value is not None]
    floor_s = sum(counted) if len(counted) == len(floors) else None
    alone = work[CLASSIFIER]
    bare_floor_s = None if alone is None else reached.floor_s(alone, timed.batch)
    alone_s = sum(typical_round(seconds[run.scope]) for run in timed.runs)
    typical = {name: typical_round(seconds[name]) for name in executors}
    outside = {name: typical_round(seconds[name] - timed.spent[name].inside) for name in executors}
    beyond = {name: typical[name] - alone_s for name in executors}
    return BatchTimes(
        batch=timed.batch,
        calls=bare.size,
        members_asked=float(verdicts.members_used.mean()),
        flagged=float(verdicts.adversarial.mean()),
        purified=sum(float(run.rows.mean()) for run in timed.runs if run.scope == PURIFIER),
        bare=latency(bare, bare, images, bare_floor_s),
        executors={name: latency(seconds[name], bare, images, floor_s) for name in executors},
        stages=tuple(_stage_time(run, seconds[run.scope], bare, calls, floors[run.scope]) for run in timed.runs),
        floor_ms=None if floor_s is None else 1e3 * floor_s,
        floor_times_bare=None if floor_s is None or not bare_floor_s else floor_s / bare_floor_s,
        outside_ms={name: 1e3 * spent / calls for name, spent in outside.items()},
        outside_share={name: spent / typical[name] for name, spent in outside.items()},
        beyond_ms={name: 1e3 * spent / calls for name, spent in beyond.items()},
        beyond_share={name: spent / typical[name] for name, spent in beyond.items()},
        outside_parts={name: _outside_parts(seconds[name], timed.spent[name]) for name in executors},
    )


def _outside_parts(seconds: Float64, spent: Spent) -> OutsideParts:
    between = seconds - spent.inside - spent.before - spent.behind
    before_ms, between_ms, behind_ms = (
        1e3 * typical_round(part) / seconds.shape[1] for part in (spent.before, between, spent.behind)
    )
    return OutsideParts(before_ms, between_ms, behind_ms, float(spent.runs.mean()))


def _stage_time(run: Run, seconds: Float64, bare: Float64, calls: int, floor_s: float | None) -> StageTime:
    return StageTime(
        scope=run.scope,
        rows=float(run.rows.sum() / calls),
        ms=1e3 * typical_round(seconds) / calls,
        times_bare=typical_round(seconds) / typical_round(bare),
        times_floor=typical_round(seconds) / calls / floor_s if floor_s else None,
    )


def _floor_s(run: Run, cuts: Sequence[int], work: Mapping[str, Work | None], reached: Ceilings) -> float | None:
    """Seconds that a stage needs at least, of a call, mean."""
    one = work[run.scope]
    if one is None:
        return None
    return float(np.mean([reached.floor_s(one, int(run.rows[low:high].sum())) for low, high in pairwise(cuts)]))


def _memory(
    file: ModelFile,
    classifier: ModelProto,
    images: Float32,
    executors: Sequence[ExecutorName],
    device: Device,
    threads: int | None,
) -> dict[str, Memory | None]:
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder, "classifier.onnx")
        stage.write_bytes(classifier.SerializeToString())
        found = {BARE: measure_memory(stage, None, images, device, threads)}
    return found | {name: measure_memory(file.path, name, images, device, threads) for name in executors}
