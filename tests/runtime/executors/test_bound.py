"""Stages in buffers that are used again, on the CPU's provider: the code that runs them on CUDA, to the last bit."""

import ctypes.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, EngineError, Verdicts
from s2ap_defend.engines.bound import BoundEngine
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.engines.pinned import pin
from s2ap_defend.executors.at_once import AtOnceExecutor
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.executors.starters import BoundStages, CpuStages
from s2ap_defend.model_file import ModelFile
from s2ap_defend.stages import CLASSIFIER, cut_stage

SMALL = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def unbound(file: ModelFile, unsure_images: np.ndarray) -> Verdicts:
    return StagedExecutor.with_starter(file, CpuStages(1)).run(unsure_images)


@pytest.fixture(scope="module")
def bound(file: ModelFile) -> StagedExecutor:
    return StagedExecutor.with_starter(file, BoundStages("cpu", sizes=SMALL))


@pytest.fixture(scope="module")
def at_once(file: ModelFile) -> AtOnceExecutor:
    return AtOnceExecutor.with_starter(file, BoundStages("cpu", sizes=SMALL))


def assert_same(found: Verdicts, expected: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.mark.parametrize("size", [1, 21])
@pytest.mark.parametrize("which", ["bound", "at_once"])
def test_every_output_has_the_bits_of_engines_without_buffers(
    which: str, size: int, unbound: Verdicts, unsure_images: np.ndarray, request: pytest.FixtureRequest
) -> None:
    executor, count = request.getfixturevalue(which), max(5, size)
    parts = [executor.run(unsure_images[i : i + size]) for i in range(0, count, size)]
    assert_same(Verdicts.concatenate(parts), unbound.rows(slice(0, count)))


def test_steps_of_a_flight_have_them_too(bound: StagedExecutor, unbound: Verdicts, unsure_images: np.ndarray) -> None:
    flight = bound.start(unsure_images[:10])
    landed = [bound.step(flight)]
    bound.join(flight, unsure_images[10:17])
    while not flight.empty:
        landed.append(bound.step(flight))
    assert sum(len(one.number) for one in landed) == 17
    for one in landed:
        assert_same(one.verdicts, unbound.rows(one.number))


@pytest.mark.parametrize("which", ["bound", "at_once"])
def test_threads_that_share_the_buffers_do_not_see_each_others_answers(
    which: str, unbound: Verdicts, unsure_images: np.ndarray, request: pytest.FixtureRequest
) -> None:
    executor = request.getfixturevalue(which)
    parts = [np.arange(i, i + 1 + i % 5) for i in range(0, 10, 2)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda index: executor.run(unsure_images[index]), parts))
    for verdicts, index in zip(found, parts, strict=True):
        assert_same(verdicts, unbound.rows(index))


def test_the_stages_of_a_step_are_one_graph_and_all_of_them_where_all_are_asked_at_once(
    file: ModelFile, bound: StagedExecutor, at_once: AtOnceExecutor
) -> None:
    (everything,) = at_once.times()
    members = len(file.manifest.members)
    runs_twice = file.manifest.decision.purify == "suspicious"
    assert sorted(everything.split("+")) == sorted(
        ["purifier", "classifier", *["classifier_again"] * runs_twice, *(f"member_{i:03d}" for i in range(members))]
    )
    purifying = next(scopes for scopes in bound.times() if "purifier" in scopes)
    assert ("classifier_again" if runs_twice else "classifier") in purifying.split("+")


def test_no_image_is_gone_over_twice_and_sizes_are_filled_up(file: ModelFile, unsure_images: np.ndarray) -> None:
    model = cut_stage(file.proto, CLASSIFIER).SerializeToString()
    engine, plain = BoundEngine(model, device="cpu", sizes=(2, 8)), OnnxRuntimeEngine(model, device="cpu", threads=1)
    assert engine.bound == ()
    assert BoundEngine(model, device="cpu", sizes=(2, 8), ahead=True).bound == (2, 8)
    images = np.clip(np.nan_to_num(unsure_images), 0, 1)
    (first,) = engine.run({"image": images[:7]}, ["log_probabilities"])
    before = first.copy()
    (other,) = engine.run({"image": images[20:25]}, ["log_probabilities"])
    np.testing.assert_array_equal(first, before)  # the buffers are used again, answers are the caller's
    assert len(other) == 5
    np.testing.assert_array_equal(other, plain.run({"image": images[20:25]}, ["log_probabilities"])[0])
    assert engine.bound == (8,)
    assert not engine.captures


def test_a_classifier_is_loaded_to_ask_all_at_once(tiny_model_path: Path, random_images: np.ndarray) -> None:
    found = DefendedClassifier.load(tiny_model_path, device="cpu", executor="at_once")
    assert found.executor.name == "at_once"
    expected = DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)(random_images[:5])
    assert_same(found(random_images[:5]), expected)


def test_tensorrt_has_no_engine_for_all_at_once(tiny_model_path: Path) -> None:
    with pytest.raises(EngineError, match=r"TensorRT|TensorrtExecutionProvider"):
        DefendedClassifier.load(tiny_model_path, device="tensorrt", executor="at_once")


@pytest.mark.skipif(ctypes.util.find_library("cuda") is not None, reason="this machine has a driver of NVIDIA's")
def test_memory_is_not_locked_where_there_is_no_driver_and_nothing_else_happens() -> None:
    assert pin(np.zeros(4, dtype=np.float32)) is False


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("executor", ["staged", "at_once"])
def test_cuda_graphs_answer_as_the_cpu_does(executor: str, file: ModelFile, unsure_images: np.ndarray) -> None:
    there = DefendedClassifier.load(file.path, device="cuda", executor=executor).executor
    here = DefendedClassifier.load(file.path, device="cpu").executor
    for rows in (1, 1, 3, 16, 120, 3):
        found, expected = there.run(unsure_images[:rows]), here.run(unsure_images[:rows])
        np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(found.label, expected.label)
        np.testing.assert_array_equal(found.adversarial, expected.adversarial)
