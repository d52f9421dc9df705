"""Counters in the shape of the protocol's statistics extension."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from s2ap_defend.drift import DriftReport
from s2ap_defend.types import Bool, Float64


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


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, times: int = 1) -> None:
        """Count one more, or several that took so long in all."""
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

    def count_request(self, succeeded: bool, duration_ns: int) -> None:
        """Count one finished request."""
        self._requests["success" if succeeded else "fail"].add(duration_ns)

    def count_batch(self, ran: Ran) -> None:
        """Count one batch; a request in several batches counts in each."""
        self._last_inference_ms = int(1000 * ran.finished_s) if self._live else 1000 * int(ran.finished_s)
        if ran.seen:
            self._execution_count += 1
            self._inference_count += sum(len(ratios) for ratios, _ in ran.seen)
        times = len(ran.queue_ns)
        self._requests["queue"].add(sum(ran.queue_ns), times)
        batch = self._batches[ran.rows]
        for stage, ns in zip(STAGES, ran.stages_ns, strict=True):
            batch[stage].add(ns)
            self._requests[stage].add(times * ns, times)

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
