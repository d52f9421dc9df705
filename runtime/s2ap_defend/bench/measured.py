"""What was measured of a file."""

from dataclasses import dataclass, field

from s2ap_defend.bench.ceilings import Ceilings
from s2ap_defend.bench.choices import Clock
from s2ap_defend.bench.memory import Memory
from s2ap_defend.bench.rounds import Latency
from s2ap_defend.bench.steady import Steady
from s2ap_defend.bench.work import Work
from s2ap_defend.executors import ExecutorName

BARE = "bare classifier"
"""Name of the classifier alone among the variants."""


@dataclass(frozen=True)
class StageTime:
    """What one stage takes when it runs alone on the rows that it is asked about.

    Attributes:
        scope: Its name in the file.
        rows: Images that it is asked about, of a batch, mean.
        ms: Of a batch, in the typical round.
        times_bare: As a multiple of the bare classifier's time.
        times_floor: As a multiple of its own floor; None where its operations could not be counted.
    """

    scope: str
    rows: float
    ms: float
    times_bare: float
    times_floor: float | None


@dataclass(frozen=True)
class OutsideParts:
    """Where a call is outside the engines.

    Attributes:
        before_ms: Before the first run of an engine: images are checked.
        between_ms: Between two of them: decisions, rows taken apart.
        behind_ms: Behind the last one: the last decision, and verdicts.
        runs: Runs of engines, mean.
    """

    before_ms: float
    between_ms: float
    behind_ms: float
    runs: float


@dataclass(frozen=True)
class BatchTimes:
    """What one batch size takes.

    Attributes:
        batch: Images of a call.
        calls: Calls of each variant that were timed.
        members_asked: Of an image, mean.
        flagged: Share of the images.
        purified: Share of the images.
        bare: The classifier alone.
        executors: The defended file, by executor.
        stages: Its stages, alone.
        floor_ms: Of a call of the defended file: the least that its stages take by operations and bytes.
        floor_times_bare: The same as a multiple of the bare classifier's floor: what the defence costs in operations.
        outside_ms: By executor, what a call spends outside the engines, timed within the call: everything that is not
            inside an engine's run. The decision of the whole file is inside.
        outside_share: By executor, the same as a share of the call.
        beyond_ms: By executor, what a call takes beyond its stages, each timed alone; below 0 where it beats those. The
            decision of the whole file is a part of it.
        beyond_share: By executor, the same as a share of the call.
        outside_parts: By executor, where the time outside the engines is.
    """

    batch: int
    calls: int
    members_asked: float
    flagged: float
    purified: float
    bare: Latency
    executors: dict[ExecutorName, Latency]
    stages: tuple[StageTime, ...]
    floor_ms: float | None
    floor_times_bare: float | None
    outside_ms: dict[ExecutorName, float]
    outside_share: dict[ExecutorName, float]
    beyond_ms: dict[ExecutorName, float]
    beyond_share: dict[ExecutorName, float]
    outside_parts: dict[ExecutorName, OutsideParts]


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of a file.

    Attributes:
        provider: The execution provider that ran.
        clock: What was counted.
        rounds: Rounds of every batch size.
        waited: Share of the time in which this process had no processor, where one thread says it; other work of the
            machine lengthens long calls more than short ones then.
        batches: By size, ascending.
        work: By stage, None where it could not be counted.
        ceilings: The best of all rounds.
        exponents: By variant, the slope of log time over log batch; None of one batch size.
        memory: By variant, None where the system does not tell.
        steady: By executor, what many batches left behind; none where that was not asked for.
    """

    provider: str
    clock: Clock
    rounds: int
    waited: float | None
    batches: tuple[BatchTimes, ...]
    work: dict[str, Work | None]
    ceilings: Ceilings
    exponents: dict[str, float | None]
    memory: dict[str, Memory | None]
    steady: dict[ExecutorName, Steady] = field(default_factory=dict)
