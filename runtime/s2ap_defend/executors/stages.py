"""The stages of a file on engines of their own, asked many rows at a time."""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from s2ap_defend.engines import Array, Engine
from s2ap_defend.engines.bound import STACKED
from s2ap_defend.executors import OnRun
from s2ap_defend.executors.groups import Group
from s2ap_defend.executors.workers import Task, Workers
from s2ap_defend.external_data import fill
from s2ap_defend.stages import CLASSIFIER, CLASSIFIER_AGAIN, cut_stage, join_stages
from s2ap_defend.types import Float32

__all__ = ["OnRun", "Stage", "StageGraph", "StageTime", "Stages", "stage_graphs", "tensorrt_stage"]

VALUE_BYTES = 4 << 20
"""The rows of a run are so many that its largest value fits into this. By measurement 1 MiB, a second-level cache of
today's cores, takes 2 to 4 % more time, 2 MiB 1 % more, and 8 MiB no less."""
WORTH_SHARING_S = 3e-4
"""Work of less than this runs on the calling thread: waking another one takes about a tenth of it."""

_BATCH = re.compile(r".+?(?:_x(\d+))?")  # a dynamic size: the images, or so many rows of each


@dataclass(frozen=True)
class StageTime:
    """What an engine has done since it was loaded: runs, images, seconds inside it."""

    runs: int
    rows: int
    seconds: float


@dataclass(frozen=True)
class StageGraph:
    """A stage, or several that are asked about the same images, before they are started.

    Attributes:
        model: The serialised graph.
        outputs: Names of what is asked of it, `SCOPE/NAME`.
        rows_at_once: Images in one run of the engine at most.
        stacked: Those of its outputs, [n, K] each, that the graph gives as one, `STACKED` [len(stacked), n, K].
    """

    model: bytes
    outputs: tuple[str, ...]
    rows_at_once: int
    stacked: tuple[str, ...] = ()


class Stage:
    """A stage, or several that are asked about the same images, on their engine.

    Args:
        engine: Of the graph.
        outputs: Names of what is asked of it, `SCOPE/NAME`.
        rows_at_once: Images in one run of the engine at most.

    Attributes:
        name: The stages: 'classifier+member_000+member_001'.
        on_run: Called after every run; None: nothing is.
        clock: By which runs are timed, nanoseconds.
    """

    def __init__(self, engine: Engine, outputs: Sequence[str], rows_at_once: int) -> None:
        self.engine, self.outputs, self.rows_at_once = engine, tuple(outputs), rows_at_once
        self.name = "+".join(dict.fromkeys(output.partition("/")[0] for output in outputs))
        self._runs, self._rows, self._seconds = 0, 0, 0.0
        self._fastest = 0.0
        self.on_run: OnRun | None = None
        self.clock: Callable[[], int] = time.perf_counter_ns
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
        began_ns, rows = self.clock(), len(images)
        answers = self.engine.run({"image": images}, self.outputs)
        ended_ns = self.clock()
        seconds = (ended_ns - began_ns) / 1e9
        with self._lock:
            self._runs += 1
            self._rows += rows
            self._seconds += seconds
            if not 0.0 < self._fastest <= seconds / rows:
                self._fastest = seconds / rows
        if self.on_run is not None:
            self.on_run(self.name, began_ns, ended_ns)
        return answers


def stage_graphs(
    model: ModelProto,
    groups: Iterable[Group],
    *,
    rows_at_once: int | None = None,
    constant: bool = False,
    stacked: bool = False,
    folder: Path | None = None,
) -> Iterator[tuple[str, StageGraph]]:
    """Cut stages out of a defended model, those of a group as one graph; with the first scope of each.

    One at a time, so that no more than one has its weights in memory.

    Args:
        model: The model.
        groups: Theirs.
        rows_at_once: Images in one run; None: what `VALUE_BYTES` allows.
        constant: Whether the image is the only input, as engines of GPUs want it; they read weights as constants.
        stacked: Whether answers leave a graph as one array, which is one copy from a device.
        folder: Of external data that is copied into the graphs; None: none is.
    """
    cut = tensorrt_stage if constant else _answering
    for group in groups:
        joined = join_stages({scope: cut(model, scope) for scope in group.scopes}, group.behind)
        outputs = tuple(output.name for output in joined.graph.output)
        rows = rows_at_once or _rows_at_once(joined)
        together = _stack(joined) if stacked else ()
        if folder is not None:
            fill(joined, folder)
        yield group.scopes[0], StageGraph(joined.SerializeToString(), outputs, rows, together)


def tensorrt_stage(model: ModelProto, scope: str) -> ModelProto:
    """A stage as the staged executor asks it, with the image as its only input: TensorRT reads weights as constants.

    Outputs are called as those of the stage, and `probabilities` of the classifier.
    """
    stage = _answering(model, scope)
    weights = {tensor.name for tensor in stage.graph.initializer}
    inputs = [value for value in stage.graph.input if value.name not in weights]
    del stage.graph.input[:]
    stage.graph.input.extend(inputs)
    return stage


class Stages:
    """The engines of a file.

    Args:
        engines: By the first scope of each.
        threads: Engine runs at a time, of one caller.
    """

    def __init__(self, engines: Mapping[str, Stage], threads: int) -> None:
        self._engines, self._workers = engines, Workers(threads)

    def times(self) -> dict[str, StageTime]:
        """What every engine has done since it was loaded, by its stages: 'classifier+member_000+member_001'."""
        return {stage.name: stage.time for stage in self._engines.values()}

    def observe(self, on_run: OnRun | None, clock: Callable[[], int]) -> None:
        """Call `on_run` after every run from now on, or nothing; `clock` times the runs."""
        for stage in self._engines.values():
            stage.on_run, stage.clock = on_run, clock

    def ask(self, questions: Sequence[tuple[str, Float32]]) -> dict[str, Array]:
        """What engines, by their first scopes, say of images [n, C, H, W] each, as many at a time as there are threads.

        Returns:
            Their outputs by name.

        Raises:
            EngineError: If an engine fails.
        """
        asked = [(self._engines[scope], images) for scope, images in questions]
        threads = self._workers.threads
        if threads > 1 and sum(stage.estimate(len(images)) for stage, images in asked) < WORTH_SHARING_S:
            threads = 1
        said = [_in_turn(stage, images) for stage, images in asked] if threads == 1 else self._shared(asked, threads)
        return {
            name: value
            for (stage, _), of in zip(asked, said, strict=True)
            for name, value in zip(stage.outputs, of, strict=True)
        }

    def _shared(self, asked: Sequence[tuple[Stage, Float32]], threads: int) -> list[list[Array]]:
        parts: list[list[list[Array]]] = []
        tasks: list[Task] = []
        for stage, images in asked:
            rows = min(stage.rows_at_once, math.ceil(len(images) / threads))
            starts = range(0, len(images), rows)
            answers: list[list[Array]] = [[] for _ in starts]
            tasks += [partial(_answer, answers, i, stage, images[at : at + rows]) for i, at in enumerate(starts)]
            parts.append(answers)
        self._workers.run(tasks)
        return [_joined(answers) for answers in parts]


def _in_turn(stage: Stage, images: Float32) -> list[Array]:
    count = len(images)
    if count <= stage.rows_at_once:
        return stage.run(images)
    rows = math.ceil(count / math.ceil(count / stage.rows_at_once))  # as many runs, of like size
    return _joined([stage.run(images[at : at + rows]) for at in range(0, count, rows)])


def _answering(model: ModelProto, scope: str) -> ModelProto:
    """A stage that gives all that is asked of it."""
    stage = cut_stage(model, scope)
    if scope in {CLASSIFIER, CLASSIFIER_AGAIN}:
        _give_probabilities(stage, scope)
    return stage


def _answer(answers: list[list[Array]], index: int, stage: Stage, images: Float32) -> None:
    answers[index] = stage.run(images)


def _joined(answers: list[list[Array]]) -> list[Array]:
    return answers[0] if len(answers) == 1 else [np.concatenate(parts) for parts in zip(*answers, strict=True)]


def _give_probabilities(classifier: ModelProto, scope: str) -> None:
    """Add the output `probabilities`, computed as in the whole file: numpy rounds an exponential in its own way."""
    graph = classifier.graph
    name = f"{scope}/probabilities"
    graph.node.append(helper.make_node("Exp", ["log_probabilities"], ["probabilities"], name=name))
    probabilities = graph.output.add()
    probabilities.CopyFrom(graph.output[0])
    probabilities.name = "probabilities"


def _stack(joined: ModelProto) -> tuple[str, ...]:
    """Make one output of those with a number for each class, where there are several; their names."""
    graph = joined.graph
    answers = [output for output in graph.output if len(output.type.tensor_type.shape.dim) == 2]
    if len(answers) < 2:
        return ()
    names = tuple(output.name for output in answers)
    others = [output for output in graph.output if output.name not in names]
    batch, classes = (dim.dim_param or dim.dim_value for dim in answers[0].type.tensor_type.shape.dim)
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.int64), f"{STACKED}/axis"))
    for name in names:
        each = [name, f"{STACKED}/axis"]
        graph.node.append(helper.make_node("Unsqueeze", each, [f"{STACKED}/{name}"], name=f"{STACKED}/{name}"))
    parts = [f"{STACKED}/{name}" for name in names]
    graph.node.append(helper.make_node("Concat", parts, [STACKED], axis=0, name=STACKED))
    kind = answers[0].type.tensor_type.elem_type
    stacked = helper.make_tensor_value_info(STACKED, kind, [len(names), batch, classes])
    del graph.output[:]
    graph.output.extend([stacked, *others])
    return names


def _rows_at_once(stage: ModelProto) -> int:
    """Images of one run: those whose largest value is no larger than `VALUE_BYTES`; at least 1."""
    largest, graph = 1, onnx.shape_inference.infer_shapes(stage).graph
    for declared in (*graph.value_info, *graph.input):
        tensor = declared.type.tensor_type
        times = _BATCH.fullmatch(tensor.shape.dim[0].dim_param) if tensor.shape.dim else None
        if times is None:
            continue
        width = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
        row = math.prod(size.dim_value or 1 for size in tensor.shape.dim[1:])
        largest = max(largest, int(times[1] or 1) * width * row)
    return max(1, VALUE_BYTES // largest)
