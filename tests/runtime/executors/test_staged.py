from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2ap_defend import DefendedClassifier, EngineError, Verdicts
from s2ap_defend.engines import Array
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.executors import starters
from s2ap_defend.executors.few import FEW
from s2ap_defend.executors.staged import WORTH_PARTING, StagedExecutor
from s2ap_defend.executors.whole import WholeExecutor
from s2ap_defend.model_file import ModelFile

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=6)
A_FILE_EACH = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(file: ModelFile, unsure_images: np.ndarray) -> Verdicts:
    """What the whole file says of all images."""
    return WholeExecutor(file, device="cpu", threads=1).run(unsure_images)


@pytest.fixture(scope="module", params=[1, 3])
def staged(file: ModelFile, request: pytest.FixtureRequest) -> StagedExecutor:
    return StagedExecutor.of(file, device="cpu", threads=request.param)


def assert_same(found: Verdicts, expected: Verdicts) -> None:
    """Every output is the same to the last bit, of the same type and shape."""
    for name in Verdicts.FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.dtype, one.shape) == (other.dtype, other.shape), name
        np.testing.assert_array_equal(one, other, err_msg=name)


def test_the_images_are_accepted_flagged_purified_and_left_undecided(whole: Verdicts) -> None:
    assert 0 < whole.adversarial.mean() < 1
    assert whole.abstained.any()
    assert len(np.unique(whole.members_used)) >= 3


@A_FILE_EACH
@given(sizes=SIZES, seed=st.integers(0, 2**32 - 1))
def test_the_stages_give_every_output_of_the_whole_file_to_the_last_bit(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray, sizes: list[int], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(unsure_images))
    for index in np.split(order, np.cumsum(sizes))[: len(sizes)]:
        assert_same(staged.run(unsure_images[index]), whole.rows(index))


def test_all_stages_for_all_images_give_the_same_bits(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray
) -> None:
    for rows in (slice(None), slice(0, 1), slice(7, 13)):
        assert_same(staged.run_all(unsure_images[rows]), whole.rows(rows))


def test_a_large_batch_whose_rows_are_parted_gets_the_same_bits(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray
) -> None:
    numbers = np.random.default_rng(5).integers(0, len(unsure_images), WORTH_PARTING // 4)
    assert (whole.rows(numbers).members_used == 6).any()
    assert_same(staged.run(unsure_images[numbers]), whole.rows(numbers))


@A_FILE_EACH
@given(sizes=SIZES, steps=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_images_that_join_between_waves_get_the_same_verdicts(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray, sizes: list[int], steps: list[int]
) -> None:
    parts = np.split(unsure_images, np.cumsum(sizes))[: len(sizes)]
    flight, landed = staged.start(parts[0]), []
    for part, count in zip(parts[1:], steps, strict=False):
        landed += [staged.step(flight) for _ in range(count) if not flight.empty]
        staged.join(flight, part)
    while not flight.empty:
        landed.append(staged.step(flight))
    numbers = np.concatenate([one.number for one in landed])
    assert sorted(numbers.tolist()) == list(range(sum(sizes)))
    for one in landed:
        assert set(one.number.tolist()) <= set(one.ran.tolist())
        assert_same(one.verdicts, whole.rows(one.number))


class Shouting(OnnxRuntimeEngine):
    """An engine whose stages are absurdly sure of one image in two."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> list[np.ndarray]:
        said = super().run(feeds, outputs)
        sure = feeds["image"].mean(axis=(1, 2, 3)) > 0.3
        for name, values in zip(outputs, said, strict=True):
            if name.endswith("log_probabilities"):
                values[sure, 1] = -2e30
        return said


def test_answers_that_are_too_large_for_a_few_images_are_decided_as_among_many(
    file: ModelFile, random_images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starters, "OnnxRuntimeEngine", Shouting)
    executor = StagedExecutor.of(file, device="cpu", threads=1)
    images = random_images[:12] * np.linspace(0.2, 1.0, 12, dtype=np.float32)[:, None, None, None]
    together = executor.run(images)
    assert 0 < (images.mean(axis=(1, 2, 3)) > 0.3).mean() < 1
    for i in range(12):
        assert_same(executor.run(images[i : i + 1]), together.rows(slice(i, i + 1)))


def test_a_few_images_of_many_classes_are_decided_in_arrays(file: ModelFile, random_images: np.ndarray) -> None:
    executor = StagedExecutor.of(file, device="cpu", threads=1)
    few = FEW // len(file.manifest.classes)
    assert 1 <= few < len(random_images)
    opened = [executor._open(random_images[:count]) for count in (few, few + 1)]
    assert [executor._few.run(one) is None for one in opened] == [False, True]


def test_eight_threads_that_share_an_executor_get_the_bits_that_one_gets(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray
) -> None:
    parts = [np.arange(i, min(i + 1 + i % 7, 120)) for i in range(0, 120, 2)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda index: staged.run(unsure_images[index]), parts))
    for verdicts, index in zip(found, parts, strict=True):
        assert_same(verdicts, whole.rows(index))


def test_images_that_are_decided_leave_before_others_need_more_members(
    staged: StagedExecutor, unsure_images: np.ndarray
) -> None:
    flight = staged.start(unsure_images)
    first = staged.step(flight)
    assert 0 < len(first.number) < len(unsure_images)
    assert not flight.empty
    last = first
    while not flight.empty:
        last = staged.step(flight)
    assert last.verdicts.members_used.min() > first.verdicts.members_used.min()


def test_an_image_that_is_alone_takes_one_step_and_one_that_is_not_may_take_more(
    staged: StagedExecutor, whole: Verdicts, unsure_images: np.ndarray
) -> None:
    valid = unsure_images.min(axis=(1, 2, 3)) >= 0
    several = int(np.flatnonzero(valid & (whole.members_used > 4) & (unsure_images.max(axis=(1, 2, 3)) <= 1))[0])
    image, rows = unsure_images[several : several + 1], whole.rows(slice(several, several + 1))
    flight = staged.start(image)
    landed = staged.step(flight)
    assert flight.empty
    assert landed.number.tolist() == landed.ran.tolist() == [0]
    assert_same(landed.verdicts, rows)
    staged.join(flight, image)
    staged.join(flight, image)
    assert len(staged.step(flight).number) == 0
    assert not flight.empty


def test_nobody_waits_for_ever_while_more_images_join(staged: StagedExecutor, unsure_images: np.ndarray) -> None:
    flight, finished = staged.start(unsure_images[:20]), set()
    for _ in range(20):
        finished |= set(staged.step(flight).number.tolist())
        staged.join(flight, unsure_images[20:40])
    assert finished >= set(range(20))


def test_verdicts_share_no_memory_with_the_images(staged: StagedExecutor, random_images: np.ndarray) -> None:
    images = random_images[:30].copy()
    verdicts = staged.run(images)
    assert not np.shares_memory(verdicts.purified, images)


def test_stages_that_no_image_asks_do_not_run(file: ModelFile, unsure_images: np.ndarray) -> None:
    executor = StagedExecutor.of(file, device="cpu", threads=2)
    used = [int(executor.run(unsure_images[i : i + 1]).members_used[0]) for i in range(20)]
    times = executor.times()
    assert times["member_000"].rows == times["classifier"].rows == 20
    assert times["member_005"].rows < 20
    assert sum(time.rows for scope, time in times.items() if scope.startswith("member")) >= sum(used)
    assert all(time.runs <= time.rows and time.seconds >= 0 for time in times.values())
    if file.manifest.decision.purify == "suspicious":
        assert 0 < times["purifier"].rows == times["classifier_again"].rows < 20


def test_with_one_thread_stages_that_are_asked_about_the_same_images_share_an_engine(
    file: ModelFile, unsure_images: np.ndarray
) -> None:
    executor = StagedExecutor.of(file, device="cpu", threads=1)
    executor.run(unsure_images[:20])
    times = executor.times()
    assert any("+" in scopes for scopes in times)
    scopes = [scope for scopes in times for scope in scopes.split("+")]
    assert sorted(scopes) == sorted(StagedExecutor.of(file, device="cpu", threads=2).times())
    assert all(time.runs <= 3 for time in times.values())


def test_the_executor_is_chosen_by_name_and_an_unknown_one_is_refused(tiny_model_path: Path) -> None:
    for name in ("whole", "staged"):
        assert DefendedClassifier.load(tiny_model_path, device="cpu", executor=name).executor.name == name
    for threads in (1, 2):
        assert DefendedClassifier.load(tiny_model_path, device="cpu", threads=threads).executor.name == "staged"
    with pytest.raises(EngineError, match="executor 'fast' is not known; choose whole, staged, at_once"):
        DefendedClassifier.load(tiny_model_path, executor="fast")
