"""The stages of a file on engines of their own, asked many rows at a time."""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import numpy as np
import onnx
from onnx import ModelProto, helper

from s2ap_defend.engines import Array, Engine
from s2ap_defend.executors.workers import Task, Workers
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, PURIFIER, cut_stage, member_scope
from s2ap_defend.types import Float32

__all__ = ["Stage", "StageGraph", "StageTime", "Stages", "stage_graphs"]

CACHE_BYTES = 1 << 20
"""The rows of a run are so many that its largest value fits: those of the second-level caches of today's cores."""
WORTH_SHARING_S = 3e-4
"""Work of less than this runs on the calling thread: waking another one takes about a tenth of it."""

_BATCH = re.compile(r".+?(?:_x(\d+))?")  # a dynamic size: the images, or so many rows of each


@dataclass(frozen=True)
class StageTime:
    """What a stage has done since it was loaded: engine runs, images, seconds inside the engine."""

    runs: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class StageGraph:
    """A stage before it is started.

    Attributes:
        model: The serialised graph.
        outputs: Names of what is asked of it.
        rows_at_once: Images in one run of the engine at most.
    """

    model: bytes
    outputs: tuple[str, ...]
    rows_at_once: int


class Stage:
    """One stage on its engine.

    Args:
        engine: Of the stage.
        outputs: Names of what is asked of it.
        rows_at_once: Images in one run of the engine at most.
    """

    def __init__(self, engine: Engine, outputs: Sequence[str], rows_at_once: int) -> None:
        self.engine, self.outputs, self.rows_at_once = engine, tuple(outputs), rows_at_once
        self._runs, self._rows, self._seconds = 0, 0, 0.0
        self._fastest = 0.0
        self._lock = Lock()

    @property
    def time(self) -> StageTime:
        """What it has done so far."""
        return StageTime(self._runs, self._rows, self._seconds)

    def estimate(self, rows: int) -> float:
        """Seconds that so many images take, by the fastest run so far; 0 before the first."""
        return rows * self._fastest

    def run(self, images: Float32) -> list[Array]:
        """The outputs for images [n, C, H, W], n at most `rows_at_once`.

        Raises:
            EngineError: If the engine fails.
        """
        began, rows = time.perf_counter(), len(images)
        answers = self.engine.run({"image": images}, self.outputs)
        seconds = time.perf_counter() - began
        with self._lock:
            self._runs += 1
            self._rows += rows
            self._seconds += seconds
            if not 0.0 < self._fastest <= seconds / rows:
                self._fastest = seconds / rows
        return answers


def stage_graphs(model: ModelProto, members: int, *, again: bool) -> dict[str, StageGraph]:
    """Cut the stages out of a defended model, by scope, members in the order in which they are asked.

    Args:
        model: Weights in memory.
        members: How many it has.
        again: Whether the classifier has a second run.
    """
    scopes = [PURIFIER, CLASSIFIER, *([CLASSIFIER_AGAIN] if again else []), *map(member_scope, range(members))]
    found = {}
    for scope in scopes:
        stage = cut_stage(model, scope)
        if scope in {CLASSIFIER, CLASSIFIER_AGAIN}:
            _give_probabilities(stage)
        outputs = tuple(output.name for output in stage.graph.output)
        found[scope] = StageGraph(stage.SerializeToString(), outputs, _rows_at_once(stage))
    return found


@dataclass(frozen=True)
class Stages:
    """The engines of a file.

    Attributes:
        purifier: Gives `purified` and `reconstruction_error`.
        classifier: Also gives `probabilities`, and so does its second run.
        again: The second run; the classifier itself where the file has none.
        members: In the order in which they are asked.
        workers: The threads that they run on.
    """

    purifier: Stage
    classifier: Stage
    again: Stage
    members: tuple[Stage, ...]
    workers: Workers

    @classmethod
    def of(
        cls, graphs: Mapping[str, StageGraph], start: Callable[[str, StageGraph], Engine], *, threads: int
    ) -> "Stages":
        """Start the stages of a file.

        Args:
            graphs: By scope, members in the order in which they are asked.
            start: Makes the engine of a stage.
            threads: Stages, or parts of a batch, that run at a time.
        """
        found = {
            scope: Stage(start(scope, graph), graph.outputs, graph.rows_at_once) for scope, graph in graphs.items()
        }
        purifier, classifier = found.pop(PURIFIER), found.pop(CLASSIFIER)
        again = found.pop(CLASSIFIER_AGAIN, classifier)
        return cls(purifier, classifier, again, tuple(found.values()), Workers(threads))

    def times(self) -> dict[str, StageTime]:
        """What every stage has done since it was loaded, by scope."""
        found = {PURIFIER: self.purifier, CLASSIFIER: self.classifier}
        if self.again is not self.classifier:
            found[CLASSIFIER_AGAIN] = self.again
        found |= {member_scope(i): member for i, member in enumerate(self.members)}
        return {scope: stage.time for scope, stage in found.items()}

    def ask(self, questions: Sequence[tuple[Stage, Float32]]) -> list[list[Array]]:
        """The outputs of stages for images [n, C, H, W] each, in the same order; they run beside each other.

        Raises:
            EngineError: If an engine fails.
        """
        threads = self.workers.threads
        if threads > 1 and sum(stage.estimate(len(images)) for stage, images in questions) < WORTH_SHARING_S:
            threads = 1
        if threads == 1 and all(len(images) <= stage.rows_at_once for stage, images in questions):
            return [stage.run(images) for stage, images in questions]
        parts: list[list[list[Array]]] = []
        tasks: list[Task] = []
        for stage, images in questions:
            rows = min(stage.rows_at_once, math.ceil(len(images) / threads))
            starts = range(0, len(images), rows)
            answers: list[list[Array]] = [[] for _ in starts]
            tasks += [partial(_answer, answers, i, stage, images[at : at + rows]) for i, at in enumerate(starts)]
            parts.append(answers)
        self.workers.run(tasks)
        return [answers[0] if len(answers) == 1 else _joined(answers) for answers in parts]


def _answer(answers: list[list[Array]], index: int, stage: Stage, images: Float32) -> None:
    answers[index] = stage.run(images)


def _joined(answers: list[list[Array]]) -> list[Array]:
    return [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _give_probabilities(classifier: ModelProto) -> None:
    """Add the output `probabilities`, computed as in the whole file: numpy rounds an exponential in its own way."""
    graph = classifier.graph
    graph.node.append(helper.make_node("Exp", ["log_probabilities"], ["probabilities"], name="probabilities"))
    probabilities = graph.output.add()
    probabilities.CopyFrom(graph.output[0])
    probabilities.name = "probabilities"


def _rows_at_once(stage: ModelProto) -> int:
    """Images whose largest value fits into the cache; at least 1."""
    largest, graph = 1, onnx.shape_inference.infer_shapes(stage).graph
    for declared in (*graph.value_info, *graph.input):
        tensor = declared.type.tensor_type
        times = _BATCH.fullmatch(tensor.shape.dim[0].dim_param) if tensor.shape.dim else None
        if times is None:
            continue
        width = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
        row = math.prod(size.dim_value or 1 for size in tensor.shape.dim[1:])
        largest = max(largest, int(times[1] or 1) * width * row)
    return max(1, CACHE_BYTES // largest)
