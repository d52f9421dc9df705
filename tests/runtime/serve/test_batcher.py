"""The batcher: who gets which rows, in what order, and what a lost, late or poisoned request does to the others."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_defend.errors import EngineError
from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.serve.errors import DeadlineError, QueueFullError, TooLargeError, UnavailableError
from s2ap_defend.types import Verdicts

POISON = 666
PIXELS = (1, 1, 1)
ROW_BYTES = 4


def images(*numbers: int):
    """Images that carry a number each."""
    return np.array(numbers, dtype=np.float32).reshape(-1, *PIXELS)


def echo(batch) -> Verdicts:
    """A model whose label is the number that the image carries."""
    rows = len(batch)
    label = batch[:, 0, 0, 0].astype(np.int64)
    return Verdicts(
        label=label,
        adversarial=label % 2 == 1,
        base_label=label,
        probabilities=np.zeros((rows, 2), np.float32),
        label_change_rate=np.zeros(rows, np.float32),
        log_likelihood_ratio=np.zeros(rows),
        members_used=np.ones(rows, np.int64),
        votes=np.zeros((rows, 2)),
        purified=batch,
        reconstruction_error=np.zeros(rows, np.float32),
        abstained=np.zeros(rows, bool),
    )


class Model:
    """Echoes, remembers its batches, fails on POISON, and can be held inside a batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()

    def __call__(self, batch) -> Verdicts:
        numbers = batch[:, 0, 0, 0].astype(int).tolist()
        self.batches.append(numbers)
        self.entered.set()
        assert self.open.wait(10)
        if POISON in numbers:
            raise ValueError("poisoned")
        return echo(batch)

    async def is_held(self) -> None:
        await asyncio.to_thread(self.entered.wait, 10)


@asynccontextmanager
async def running(model, **limits):
    batcher = Batcher(model, **{"max_batch_rows": 4, "max_queue_rows": 16, "max_queue_bytes": 1000, **limits})
    batcher.start()
    try:
        yield batcher
    finally:
        if isinstance(model, Model):
            model.open.set()
        assert await batcher.close(10)


@asynccontextmanager
async def held(**limits):
    """A batcher whose device is busy with image 0."""
    model = Model()
    model.open.clear()
    async with running(model, **limits) as batcher:
        first = asyncio.ensure_future(batcher.submit(images(0)))
        await model.is_held()
        yield model, batcher, first
        model.open.set()
        if not first.done():
            await first


def labels(verdicts: Verdicts) -> list[int]:
    return verdicts.label.tolist()


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 11), st.integers(0, 3), st.sampled_from(["keep", "keep", "cancel", "late"]), st.booleans()
    ),
    min_size=1,
    max_size=25,
)


@given(requests=REQUESTS, max_batch_rows=st.integers(1, 7), poisoned=st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_every_caller_gets_exactly_its_rows(requests, max_batch_rows, poisoned):
    async def scenario():
        model = Model()
        async with running(model, max_batch_rows=max_batch_rows, max_queue_rows=1000, max_queue_bytes=10**6) as batcher:
            tasks, first = [], 0
            for rows, priority, fate, pause in requests:
                numbers = [POISON if number == poisoned else number for number in range(first, first + rows)]
                first += rows
                tasks.append(
                    (numbers, fate, asyncio.ensure_future(batcher.submit(images(*numbers), priority=priority)))
                )
                await asyncio.sleep(0)
                if fate == "cancel":
                    tasks[-1][2].cancel()
                if pause:
                    await asyncio.sleep(0.0005)
            for _, fate, task in tasks:
                if fate == "late":
                    task.cancel()
            for numbers, fate, task in tasks:
                if fate != "keep":
                    await asyncio.wait([task])
                elif POISON in numbers:
                    with pytest.raises(EngineError):
                        await task
                else:
                    verdicts = await task
                    assert labels(verdicts) == numbers
                    np.testing.assert_array_equal(verdicts.purified, images(*numbers))
            assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
        assert max(map(len, model.batches)) <= max_batch_rows

    asyncio.run(scenario())


def test_a_free_device_takes_a_lone_request_at_once_and_the_next_batch_forms_while_it_works():
    async def scenario():
        async with held() as (model, batcher, first):
            others = [asyncio.ensure_future(batcher.submit(images(number))) for number in (1, 2, 3)]
            await asyncio.sleep(0.01)
            assert model.batches == [[0]]
            assert (batcher.pending_rows, batcher.pending_requests, batcher.queued_rows) == (4, 4, 3)
            model.open.set()
            assert [labels(await task) for task in (first, *others)] == [[0], [1], [2], [3]]
            assert model.batches == [[0], [1, 2, 3]]

    asyncio.run(scenario())


def test_a_request_larger_than_a_batch_is_split_and_joined_in_order():
    async def scenario():
        model = Model()
        async with running(model, max_batch_rows=3) as batcher:
            assert labels(await batcher.submit(images(*range(8)))) == list(range(8))
        assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]

    asyncio.run(scenario())


def test_order_is_by_priority_then_deadline_then_arrival():
    async def scenario():
        async with held(max_batch_rows=1, ageing_s=1e9) as (model, batcher, _):
            now = asyncio.get_running_loop().time()
            waiting = [(1, 5, 1e9), (2, 5, now + 200), (3, 5, now + 100), (4, 1, 1e9), (5, 5, now + 100)]
            tasks = [
                asyncio.ensure_future(batcher.submit(images(number), priority=priority, deadline_s=deadline))
                for number, priority, deadline in waiting
            ]
            await asyncio.sleep(0)
            model.open.set()
            await asyncio.gather(*tasks)
            assert model.batches == [[0], [4], [3], [5], [2], [1]]

    asyncio.run(scenario())


def test_waiting_counts_like_priority_so_that_nobody_starves():
    async def scenario():
        async with held(max_batch_rows=1, ageing_s=0.01) as (model, batcher, _):
            patient = asyncio.ensure_future(batcher.submit(images(1), priority=3))
            await asyncio.sleep(0.06)
            urgent = asyncio.ensure_future(batcher.submit(images(2), priority=1))
            await asyncio.sleep(0)
            model.open.set()
            await asyncio.gather(patient, urgent)
            assert model.batches == [[0], [1], [2]]

    asyncio.run(scenario())


@pytest.mark.parametrize("limit", [{"max_queue_rows": 4}, {"max_queue_bytes": 4 * ROW_BYTES}], ids=["rows", "bytes"])
def test_a_full_queue_refuses_and_a_cancelled_request_makes_room_at_once(limit):
    async def scenario():
        async with held(**limit) as (model, batcher, _):
            waiting = asyncio.ensure_future(batcher.submit(images(1, 2, 3)))
            await asyncio.sleep(0)
            with pytest.raises(QueueFullError, match="3 images wait already"):
                await batcher.submit(images(4, 5))
            with pytest.raises(TooLargeError, match="5 images of 20 bytes"):
                await batcher.submit(images(1, 2, 3, 4, 5))
            waiting.cancel()
            await asyncio.wait([waiting])
            assert batcher.queued_rows == 0
            after = asyncio.ensure_future(batcher.submit(images(6, 7, 8, 9)))
            await asyncio.sleep(0)
            model.open.set()
            assert labels(await after) == [6, 7, 8, 9]
            assert model.batches == [[0], [6, 7, 8, 9]]  # what was cancelled never ran

    asyncio.run(scenario())


def test_a_deadline_fires_while_the_device_is_busy_and_gives_back_the_room():
    async def scenario():
        async with held() as (model, batcher, _):
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(DeadlineError):
                await batcher.submit(images(1), deadline_s=began + 0.03)
            assert 0.03 <= loop.time() - began < 5
            assert not model.open.is_set()
            assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
            model.open.set()
        assert model.batches == [[0]]

    asyncio.run(scenario())


def test_a_deadline_that_passes_while_the_request_runs_leaves_its_neighbours_alone():
    async def scenario():
        model = Model()
        model.open.clear()
        async with running(model) as batcher:
            deadline = asyncio.get_running_loop().time() + 0.05
            late = asyncio.ensure_future(batcher.submit(images(1), deadline_s=deadline))
            neighbour = asyncio.ensure_future(batcher.submit(images(2)))
            await model.is_held()
            with pytest.raises(DeadlineError):
                await late
            model.open.set()
            assert labels(await neighbour) == [2]
            assert model.batches == [[1, 2]]

    asyncio.run(scenario())


def test_cancelling_one_waiter_of_a_running_batch_leaves_its_neighbours_with_their_answers():
    async def scenario():
        model = Model()
        model.open.clear()
        async with running(model) as batcher:
            tasks = [asyncio.ensure_future(batcher.submit(images(number))) for number in (1, 2, 3)]
            await model.is_held()
            assert model.batches == [[1, 2, 3]]
            tasks[1].cancel()
            await asyncio.wait([tasks[1]])
            model.open.set()
            assert [labels(await tasks[i]) for i in (0, 2)] == [[1], [3]]
            assert labels(await batcher.submit(images(4))) == [4]

    asyncio.run(scenario())


def test_a_poisoned_row_fails_its_request_alone_after_one_retry():
    async def scenario():
        async with held() as (model, batcher, _):
            tasks = [asyncio.ensure_future(batcher.submit(images(*numbers))) for numbers in ([1], [2, POISON], [3])]
            await asyncio.sleep(0)
            model.open.set()
            assert labels(await tasks[0]) == [1]
            assert labels(await tasks[2]) == [3]
            with pytest.raises(EngineError, match="the model failed: ValueError"):
                await tasks[1]
            assert model.batches == [[0], [1, 2, POISON, 3], [1], [2], [POISON], [3]]

    asyncio.run(scenario())


def test_a_lone_failing_row_is_not_retried():
    async def scenario():
        model = Model()
        async with running(model) as batcher:
            with pytest.raises(EngineError):
                await batcher.submit(images(POISON))
        assert model.batches == [[POISON]]

    asyncio.run(scenario())


def test_a_model_that_answers_with_too_few_rows_is_an_error_and_not_a_mix_up():
    async def scenario():
        async with running(lambda batch: echo(batch[:-1])) as batcher:
            with pytest.raises(EngineError, match="gave 0 verdicts for 1 images"):
                await batcher.submit(images(1))

    asyncio.run(scenario())


def test_abort_answers_what_waits_and_what_runs():
    async def scenario():
        async with held() as (model, batcher, first):
            waiting = asyncio.ensure_future(batcher.submit(images(1)))
            await asyncio.sleep(0)
            batcher.abort(UnavailableError("stopping"))
            for task in (first, waiting):
                with pytest.raises(UnavailableError, match="stopping"):
                    await task
            assert batcher.queued_rows == 0
            model.open.set()
        with pytest.raises(UnavailableError, match="not running"):
            await batcher.submit(images(1))

    asyncio.run(scenario())


def test_closing_leaves_a_stuck_batch_behind_instead_of_waiting_for_ever():
    async def scenario():
        model = Model()
        model.open.clear()
        batcher = Batcher(model, max_batch_rows=4, max_queue_rows=16, max_queue_bytes=1000)
        batcher.start()
        task = asyncio.ensure_future(batcher.submit(images(1)))
        await model.is_held()
        assert not await batcher.close(0.01)
        with pytest.raises(UnavailableError):
            await task
        model.open.set()

    asyncio.run(scenario())
    deadline = time.monotonic() + 5
    while any(thread.name == "s2ap-device" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "s2ap-device" for thread in threading.enumerate())


def test_reports_tell_rows_and_waiting_times():
    async def scenario():
        reports = []
        async with running(Model(), on_batch=reports.append) as batcher:
            await batcher.submit(images(1, 2, 3))
            await asyncio.sleep(0)
        (report,) = reports
        assert report.result.rows == 3
        assert len(report.queue_ns) == 1
        assert min(report.queue_ns[0], report.result.compute_ns, report.result.input_ns, report.result.output_ns) >= 0

    asyncio.run(scenario())
