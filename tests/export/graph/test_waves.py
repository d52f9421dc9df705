"""The graph of the sequential test against its numpy reference, on answers that are written into the image."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper
from tests.runtime.sequential_cases import OUTCOME, ROWS, answers, cases

from s2ap_defend.sequential import SequentialTest, run_sequential_test
from s2ap_defend.types import Verdicts
from s2ap_export.graph.builder import GraphBuilder
from s2ap_export.graph.compose import compose

Case = tuple[SequentialTest, np.ndarray, np.ndarray]


def reading_stage(row: int, rows: int, classes: int) -> ModelProto:
    """A network [batch, 1, rows, classes] -> [batch, classes] whose log-probabilities are a row of its image.

    It stops the run with an error when they are not numbers.
    """
    build = GraphBuilder(f"row_{row}")
    gathered = build.op("Gather", "image", build.constant(np.int64(row)), axis=2)
    answer = build.op("Reshape", gathered, build.constant(np.array([-1, classes], dtype=np.int64)))
    spoilt = build.op("Cast", build.op("IsNaN", answer), to=TensorProto.INT64)
    nothing = build.op("Gather", build.constant(np.zeros(1, dtype=np.float32)), spoilt)  # the table has one entry
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, rows, classes])
    answered = helper.make_tensor_value_info("log_probabilities", TensorProto.FLOAT, ["batch", classes])
    return build.model([image], [(build.op("Add", answer, nothing), answered)])


def passing_purifier(rows: int, classes: int) -> ModelProto:
    """A purifier that changes nothing."""
    build = GraphBuilder("purifier")
    purified = build.op("Add", "image", build.constant(np.float32(0)))
    error = build.op("ReduceMax", purified, build.constant(np.array([1, 2, 3], dtype=np.int64)), keepdims=0)
    shape = ["batch", 1, rows, classes]
    image, same = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("image", "purified"))
    errors = helper.make_tensor_value_info("reconstruction_error", TensorProto.FLOAT, ["batch"])
    return build.model([image], [(purified, same), (error, errors)])


def images(logp: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Answers [n, N, K] and base labels [N] as images [N, 1, n + 1, K]."""
    classifier = np.where(base[:, None] == np.arange(logp.shape[2]), 0.0, -1.0).astype(np.float32)
    return np.concatenate([logp, classifier[None]]).transpose(1, 0, 2)[:, None].copy()


def session(test: SequentialTest, classes: int, profile: Path | None = None) -> ort.InferenceSession:
    rows = test.members + 1
    *members, classifier = (reading_stage(row, rows, classes) for row in range(rows))
    model = compose(passing_purifier(rows, classes), classifier, members, test)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def verdicts(runner: ort.InferenceSession, batch: np.ndarray) -> Verdicts:
    return Verdicts(*runner.run(list(Verdicts.FIELDS), {"image": batch}))


@st.composite
def cases_in_waves(draw: st.DrawFn) -> Case:
    """A random test in random waves."""
    test, logp, base = draw(cases())
    cuts = draw(st.lists(st.booleans(), min_size=test.members - 1, max_size=test.members - 1))
    places = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), test.members]
    return replace(test, waves=tuple(np.diff(places).tolist())), logp, base


@settings(max_examples=80, deadline=None)
@given(case=cases_in_waves())
def test_waves_of_any_sizes_decide_and_vote_as_the_sequential_loop_to_the_last_bit(case: Case) -> None:
    test, logp, base = case
    found = verdicts(session(test, logp.shape[2]), images(logp, base))
    expected = run_sequential_test(test, logp, base)
    for name in OUTCOME:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@settings(max_examples=25, deadline=None)
@given(case=cases_in_waves(), seed=st.integers(0, 2**32 - 1), size=st.integers(1, ROWS - 1))
def test_an_image_gets_the_same_verdict_alone_in_any_batch_and_at_any_place(case: Case, seed: int, size: int) -> None:
    test, logp, base = case
    runner, batch = session(test, logp.shape[2]), images(logp, base)
    together, order = verdicts(runner, batch), np.random.default_rng(seed).permutation(ROWS)
    parts = Verdicts.concatenate([verdicts(runner, batch[i : i + size]) for i in range(0, ROWS, size)])
    permuted = verdicts(runner, batch[order])
    for name in Verdicts.FIELDS:
        np.testing.assert_array_equal(getattr(parts, name), getattr(together, name), err_msg=name)
        np.testing.assert_array_equal(getattr(permuted, name), getattr(together, name)[order], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(case=cases_in_waves())
def test_a_wave_sees_only_images_that_its_first_member_asks(case: Case) -> None:
    test, logp, base = case
    expected = run_sequential_test(test, logp, base)
    first = np.repeat(np.cumsum((0, *test.waves[:-1])), test.waves)  # of the wave of each member [n]
    poisoned = logp.copy()
    poisoned[first[:, None] >= expected.members_used] = np.nan  # a member that reads it stops the run
    found = verdicts(session(test, logp.shape[2]), images(poisoned, base))
    for name in OUTCOME:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def flagged_by_the_first(**changes: object) -> SequentialTest:
    """Six members; whoever the first disagrees with is flagged, and all six vote unless it is settled before."""
    never = np.full(6, np.inf)
    test = SequentialTest(
        evidence="margin",
        edges=np.full((6, 1), 1e-4, dtype=np.float32),
        increments=np.tile([-1.0, 1.0], (6, 1)),
        lower=-never,
        upper=np.where(np.arange(6) == 0, 1.0, never),
        final_threshold=0.0,
        vote_members=6,
        waves=(3, 2, 1),
    )
    return replace(test, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("waves", [(3, 2, 1), (6,), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_every_way_in_which_six_members_can_vote_ends_as_in_the_loop(waves: tuple[int, ...], weight: float) -> None:
    labels = np.indices((3,) * 6).reshape(6, -1)
    logp, base = answers(labels.tolist()), np.zeros(labels.shape[1], dtype=np.int64)
    test = flagged_by_the_first(waves=waves, base_vote_weights=np.array([weight]))
    expected = run_sequential_test(test, logp, base)
    assert len(np.unique(expected.members_used)) > 2
    found = verdicts(session(test, 3), images(logp, base))
    for name in OUTCOME:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def asked_in_vote(tmp_path: Path, labels: list[int], **changes: object) -> list[str]:
    """Members that run for three equal images that the first member flags."""
    runner = session(flagged_by_the_first(**changes), 3, tmp_path / "run")
    found = verdicts(runner, images(answers([[label] * 3 for label in labels]), np.zeros(3, dtype=np.int64)))
    assert found.adversarial.all()
    events = json.loads(Path(runner.end_profiling()).read_text())
    ran = {event["name"].partition("/")[0] for event in events if event["name"].startswith("member_")}
    assert len(ran) >= found.members_used.max()
    return sorted(ran)


def test_a_wave_is_skipped_when_only_settled_votes_are_left(tmp_path: Path) -> None:
    members = [f"member_{i:03d}" for i in range(6)]
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 0, 0], curtail=False) == members
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 0, 0]) == members[:5]  # 4 : 0 with two left, in the second wave
    assert asked_in_vote(tmp_path, [1, 1, 1, 2, 0, 1]) == members[:5]  # 3 : 1 with one left
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 1, 1], vote_members=4) == members[:3]  # 3 : 0 with one left
    assert asked_in_vote(tmp_path, [1, 1, 1, 2, 2, 1]) == members  # 3 : 2 with one left could be tied
    assert asked_in_vote(tmp_path, [1, 1, 1, 1, 1, 1], correct=False) == members[:3]
