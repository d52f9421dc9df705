"""Images that hold what every stage says of them, and the stages that read it there."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from tests.runtime.sequential_cases import cases

from s2ap_defend.decision_record import Purify, Sees
from s2ap_defend.sequential import SequentialOutcome, SequentialTest, StageAnswers
from s2ap_defend.types import Verdicts
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.compose import compose

SCALE = 64.0  # of log-probabilities to pixels, a power of two
UNREAD = 1.0  # a pixel that stops the run with an error when a stage reads it
BEFORE = 4  # rows before those of members: unread, the classifier's raw and purified, the reconstruction error
OUTCOME = [field.name for field in fields(SequentialOutcome) if field.name in Verdicts.FIELDS]
Case = tuple[SequentialTest, StageAnswers, Purify, tuple[Sees, ...]]


def reading_stage(row: int, rows: int, classes: int) -> ModelProto:
    """A network [batch, 1, rows, classes] -> [batch, classes] whose log-probabilities are a row of its image."""
    build = GraphBuilder(f"row_{row}")
    gathered = build.op("Gather", "image", build.constant(np.int64(row)), axis=2)
    pixels = build.op("Reshape", gathered, build.constant(np.array([-1, classes], dtype=np.int64)))
    spoilt = build.op("Cast", build.op("Equal", pixels, build.constant(np.float32(UNREAD))), to=TensorProto.INT64)
    nothing = build.op("Gather", build.constant(np.zeros(1, dtype=np.float32)), spoilt)  # the table has one entry
    answer = build.op("Mul", pixels, build.constant(np.float32(-SCALE)))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, rows, classes])
    answered = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["batch", classes])
    return build.model([image], [(build.op("Add", answer, nothing), answered)])


def moving_purifier(members: int, classes: int, *, off: bool = False) -> ModelProto:
    """A purifier that moves what is said of purified images to the rows that stages read; off: it changes nothing."""
    build, rows = GraphBuilder("purifier"), BEFORE + 2 * members
    order = list(range(rows))
    if not off:
        order[1] = 2
        order[BEFORE : BEFORE + members] = order[BEFORE + members :]
    purified = build.op("Gather", "image", build.constant(np.array(order)), axis=2)
    error = build.op("Gather", "image", build.constant(np.int64(3)), axis=2)
    error = build.op("Gather", error, build.constant(np.int64(0)), axis=2)
    error = build.op("Reshape", error, build.constant(np.array([-1], dtype=np.int64)))
    error = build.op("Mul", error, build.constant(np.float32(0 if off else SCALE)))
    shape: list[str | int | None] = ["batch", 1, rows, classes]
    image, same = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "purified"))
    errors = helper.make_tensor_value_info("reconstruction_error", TensorProto.FLOAT, ["batch"])
    return build.model([image], [(purified, same), (error, errors)])


def images(said: StageAnswers, purify: Purify, sees: tuple[Sees, ...]) -> np.ndarray:
    """What is said as images [N, 1, rows, K]; a pixel that nobody reads is spoilt where they are not valid."""
    members, count, classes = said.members.shape
    batch = np.full((count, 1, BEFORE + 2 * members, classes), UNREAD, dtype=np.float32)
    batch[:, 0, 0] = 0.5
    if said.valid is not None and said.finite is not None:
        batch[~said.valid, 0, 0, 0] = -5.0
        batch[~said.finite, 0, 0, 0] = np.resize(np.array([np.nan, np.inf, -np.inf]), (~said.finite).sum())
    first = said.on_raw if said.on_raw is not None else said.classifier if purify == "off" else None
    if first is not None:
        batch[:, 0, 1] = -first / SCALE
    batch[:, 0, 2] = -said.classifier / SCALE
    batch[:, 0, 3] = 0.0 if said.reconstruction_error is None else said.reconstruction_error[:, None] / SCALE
    for i, (eye, answer) in enumerate(zip(sees, said.members, strict=True)):
        batch[:, 0, BEFORE + i + (members if eye == "purified" and purify != "off" else 0)] = -answer / SCALE
    return batch


def model_of(case: Case) -> ModelProto:
    """The composed graph."""
    test, said, purify, sees = case
    members, _, classes = said.members.shape
    rows = BEFORE + 2 * members
    stages = [reading_stage(BEFORE + i, rows, classes) for i in range(members)]
    purifier = moving_purifier(members, classes, off=purify == "off")
    return compose(purifier, reading_stage(1, rows, classes), stages, test, sees=sees, purify=purify)


def session(model: ModelProto, profile: Path | None = None) -> ort.InferenceSession:
    """The graph in ONNX Runtime, nothing of this project around it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def verdicts(runner: ort.InferenceSession, batch: np.ndarray) -> Verdicts:
    """All outputs."""
    return Verdicts(*runner.run(list(Verdicts.FIELDS), {"image": batch}))


@st.composite
def decisions(draw: st.DrawFn) -> Case:
    """A random decision in random waves, when images are purified and what members see."""
    test, said = draw(cases())
    cuts = draw(st.lists(st.booleans(), min_size=test.members, max_size=test.members))
    places = [0, *(i for i in range(test.opening, test.members) if cuts[i]), test.members]
    purify: Purify = "suspicious"
    if said.on_raw is None:
        needs = any(signal.name == "reconstruction error" for signal in test.signals)
        purify = "always" if needs else draw(st.sampled_from(["always", "off"]))
    either: st.SearchStrategy[Sees] = st.sampled_from(["raw", "purified"])
    eyes: list[Sees] = draw(st.lists(either, min_size=test.members, max_size=test.members))
    if purify == "suspicious":
        eyes[: test.opening] = ["raw"] * test.opening
    return replace(test, waves=tuple(np.diff(places).tolist())), said, purify, tuple(eyes)
