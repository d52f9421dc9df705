"""The batcher on an executor that goes wave by wave: who joins, who leaves, and what a failing image does to others."""

import asyncio
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2ap_defend.errors import EngineError
from s2ap_defend.executors.staged import StagedExecutor
from s2ap_defend.model_file import open_model_file
from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.types import Verdicts

POISON = 0.6875  # a pixel on which a wave fails


class Executor(StagedExecutor):
    """Fails on POISON, and can be held before a wave."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        self.waves: list[int] = []

    def step(self, flight):
        self.entered.set()
        assert self.open.wait(10)
        for _, images in flight.fresh:
            refuse_poison(images)
        landed = super().step(flight)
        self.waves.append(len(landed.ran))
        return landed

    def run(self, images):
        refuse_poison(images)
        return super().run(images)


def refuse_poison(images: np.ndarray) -> None:
    if (images[:, 0, 0, 0] == POISON).any():
        raise ValueError("poisoned")


@pytest.fixture(scope="module")
def executor(tiny_model_path: Path) -> Executor:
    return Executor.of(open_model_file(tiny_model_path), device="cpu", threads=1)


@pytest.fixture(scope="module")
def images(random_images: np.ndarray) -> np.ndarray:
    return random_images[:64]


@pytest.fixture(scope="module")
def alone(executor: Executor, images: np.ndarray) -> Verdicts:
    """What each image gets alone."""
    return Verdicts.concatenate([executor.run(images[i : i + 1]) for i in range(len(images))])


@asynccontextmanager
async def running(executor: Executor, **limits):
    executor.waves.clear()
    batcher = Batcher(executor, **{"max_batch_rows": 8, "max_queue_rows": 200, "max_queue_bytes": 10**6, **limits})
    batcher.start()
    try:
        yield batcher
    finally:
        executor.open.set()
        assert await batcher.close(10)


def assert_same(found: Verdicts, expected: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


REQUESTS = st.lists(
    st.tuples(st.integers(1, 11), st.sampled_from(["keep", "keep", "cancel", "poison"]), st.booleans()),
    min_size=1,
    max_size=12,
)


@given(requests=REQUESTS, max_batch_rows=st.integers(1, 9), quick=st.booleans())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_caller_gets_exactly_its_rows_to_the_last_bit(executor, images, alone, requests, max_batch_rows, quick):
    async def scenario():
        async with running(executor, max_batch_rows=max_batch_rows) as batcher:
            if quick:
                await batcher.allow_here(images[:1])
            tasks, first = [], 0
            for rows, fate, pause in requests:
                index = np.arange(first, first + rows) % len(images)
                first += rows
                asked = images[index]
                if fate == "poison":
                    asked = asked.copy()
                    asked[rows // 2, 0, 0, 0] = POISON
                tasks.append((index, fate, asyncio.ensure_future(batcher.submit(asked))))
                await asyncio.sleep(0.0005 if pause else 0)
                if fate == "cancel":
                    tasks[-1][2].cancel()
            for index, fate, task in tasks:
                if fate == "poison":
                    with pytest.raises(EngineError, match="the model failed: ValueError"):
                        await task
                elif fate == "cancel":
                    await asyncio.wait([task])
                else:
                    assert_same(await task, alone.rows(index))
            assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
        assert max(executor.waves, default=0) <= max_batch_rows

    asyncio.run(scenario())


def test_a_request_that_comes_while_a_wave_runs_joins_before_the_next_one(executor, images, alone):
    slow = np.flatnonzero(alone.members_used > 3)[:1]  # it needs a second wave

    async def scenario():
        async with running(executor) as batcher:
            executor.open.clear()
            executor.entered.clear()
            first = asyncio.ensure_future(batcher.submit(images[slow]))
            await asyncio.to_thread(executor.entered.wait, 10)
            second = asyncio.ensure_future(batcher.submit(images[:3]))
            await asyncio.sleep(0.02)
            executor.open.set()
            assert_same(await first, alone.rows(slow))
            assert_same(await second, alone.rows(slice(0, 3)))
        assert executor.waves[0] == 1
        assert 3 in executor.waves[1:3]

    asyncio.run(scenario())


def test_a_decided_request_is_answered_while_others_go_on(executor, images, alone):
    quick, slow = int(alone.members_used.argmin()), int(alone.members_used.argmax())
    left: list[str] = []

    async def scenario():
        async with running(executor) as batcher:
            tasks = {
                "slow": asyncio.ensure_future(batcher.submit(images[slow : slow + 1])),
                "quick": asyncio.ensure_future(batcher.submit(images[quick : quick + 1])),
            }
            for name, task in tasks.items():
                task.add_done_callback(lambda _, name=name: left.append(name))
            await asyncio.gather(*tasks.values())
        assert left == ["quick", "slow"]

    asyncio.run(scenario())


def test_a_lone_failing_image_is_not_retried_and_others_in_flight_are_run_once_more(executor, images, alone):
    poisoned = images[:1].copy()
    poisoned[0, 0, 0, 0] = POISON

    async def scenario():
        async with running(executor) as batcher:
            with pytest.raises(EngineError, match="the model failed: ValueError"):
                await batcher.submit(poisoned)
            assert executor.waves == []
            tasks = [asyncio.ensure_future(batcher.submit(one)) for one in (images[:2], poisoned, images[2:4])]
            assert_same(await tasks[0], alone.rows(slice(0, 2)))
            assert_same(await tasks[2], alone.rows(slice(2, 4)))
            with pytest.raises(EngineError):
                await tasks[1]

    asyncio.run(scenario())


def test_closing_lets_the_wave_end_and_answers_what_waits(executor, images):
    async def scenario():
        async with running(executor) as batcher:
            executor.open.clear()
            executor.entered.clear()
            task = asyncio.ensure_future(batcher.submit(images[:8]))
            waiting = asyncio.ensure_future(batcher.submit(images[8:16]))
            await asyncio.to_thread(executor.entered.wait, 10)
            batcher.abort(UnavailableError("stopping"))
            for one in (task, waiting):
                with pytest.raises(UnavailableError, match="stopping"):
                    await one
            executor.open.set()

    asyncio.run(scenario())


def test_reports_share_the_time_of_waves_between_the_batches_that_ran(executor, images):
    reports = []

    async def scenario():
        async with running(executor, max_batch_rows=12, on_batch=reports.append) as batcher:
            await asyncio.gather(*(batcher.submit(images[i : i + 3]) for i in range(0, 30, 3)))
            await asyncio.sleep(0.01)

    asyncio.run(scenario())
    assert sum(report.result.rows for report in reports) == 30
    assert sum(len(report.queue_ns) for report in reports) == 10
    assert all(report.result.compute_ns > 0 for report in reports)
    assert all(isinstance(outcome, Verdicts) for report in reports for outcome in report.result.outcomes)
