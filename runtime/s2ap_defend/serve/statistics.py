"""Counters in the shape of the protocol's statistics extension."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter, mul
from typing import Any, NamedTuple

from s2ap_defend.drift import DriftReport
from s2ap_defend.types import Bool, Float32, Float64, Int64


class Ran(NamedTuple):
    """What is counted of a batch; its images are gone by then.

    Attributes:
        rows: Images in it.
        seen: Of every part that was answered the final log-likelihood ratios [n], and which images were flagged [n].
        stages_ns: Time to put it together, in the model, and to take it apart.
        queue_ns: How long each of its parts had waited.
        finished_s: When it was done, in seconds since 1970.
        watched: Whether the drift monitor sees it.
    """

    rows: int
    seen: list[tuple[Float64, Bool]]
    stages_ns: tuple[int, int, int]
    queue_ns: tuple[int, ...]
    finished_s: float
    watched: bool


class Evidence(NamedTuple):
    """What is counted of evidence, each array [n].

    Attributes:
        corrected: Which images got another label than the classifier's.
        members_used: Members asked about each.
        label_change_rate: Share of them that disagree.
    """

    corrected: Bool
    members_used: Int64
    label_change_rate: Float32


class Answered(NamedTuple):
    """What is counted of the verdicts of a request.

    Attributes:
        adversarial: Which images were flagged [n].
        abstained: Which got no answer [n].
        evidence: None where it is not counted.
    """

    adversarial: Bool
    abstained: Bool
    evidence: Evidence | None


class Finished(NamedTuple):
    """What is counted of a request that is over.

    Attributes:
        protocol: By which it came, as the metrics have it.
        outcome: What became of it, likewise.
        duration_ns: How long it took.
        answered: Of its verdicts, None without.
    """

    protocol: str
    outcome: str
    duration_ns: int
    answered: Answered | None


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int) -> None:
        """Count so many more, which took so long in all."""
        self.count += times
        self.ns += ns

    def to_json(self) -> dict[str, int]:
        """The protocol's $duration_stat."""
        return {"count": self.count, "ns": self.ns}


STAGES = ("compute_input", "compute_infer", "compute_output")


class Statistics:
    """Statistics of the one model that a server serves, since it started.

    Args:
        live: Whether times are shown at once; otherwise those of the last `publish_times` are, because two looks
            around one request would tell how many members it asked.

    Attributes:
        drift: What the drift monitor said last, None without one.
    """

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self.drift: DriftReport | None = None
        self._inference_count = 0
        self._execution_count = 0
        self._last_inference_ms = 0
        self._requests = {name: Duration() for name in ("success", "fail", "queue", *STAGES)}
        self._batches: defaultdict[int, dict[str, Duration]] = defaultdict(
            lambda: {stage: Duration() for stage in STAGES}
        )
        self.publish_times()

    def count_requests(self, durations_ns: Sequence[int], *, succeeded: bool) -> None:
        """Count finished requests."""
        self._requests["success" if succeeded else "fail"].add(sum(durations_ns), len(durations_ns))

    def count_batches(self, batches: Sequence[Ran]) -> None:
        """Count batches in their order; a request in several of them counts in each."""
        if not batches:
            return
        last_s = batches[-1].finished_s
        self._last_inference_ms = int(1000 * last_s) if self._live else 1000 * int(last_s)
        answered = [ran.seen for ran in batches if ran.seen]
        self._execution_count += len(answered)
        self._inference_count += sum(len(ratios) for seen in answered for ratios, _ in seen)
        for rows, group in groupby(batches, key=attrgetter("rows")):
            alike = list(group)
            parts = [len(ran.queue_ns) for ran in alike]
            self._requests["queue"].add(sum(sum(ran.queue_ns) for ran in alike), sum(parts))
            batch = self._batches[rows]
            for stage, took_ns in zip(STAGES, zip(*(ran.stages_ns for ran in alike), strict=True), strict=True):
                batch[stage].add(sum(took_ns), len(alike))
                self._requests[stage].add(sum(map(mul, parts, took_ns)), sum(parts))

    def publish_times(self) -> None:
        """Tell the times of all requests and batches until now from now on."""
        self._times: dict[str, Any] = {
            "inference_stats": {name: duration.to_json() for name, duration in self._requests.items()},
            "batch_stats": [
                {"batch_size": rows, **{stage: duration.to_json() for stage, duration in stages.items()}}
                for rows, stages in sorted(self._batches.items())
            ],
        }

    def to_json(self, model: str, version: str) -> dict[str, Any]:
        """The protocol's $model_stat, and `drift` where there is a monitor."""
        if self._live:
            self.publish_times()
        nothing = Duration().to_json()
        return {
            "name": model,
            "version": version,
            "last_inference": self._last_inference_ms,
            "inference_count": self._inference_count,
            "execution_count": self._execution_count,
            "inference_stats": {**self._times["inference_stats"], "cache_hit": nothing, "cache_miss": nothing},
            "batch_stats": self._times["batch_stats"],
            **({} if self.drift is None else {"drift": asdict(self.drift)}),
        }
