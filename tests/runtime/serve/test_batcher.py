"""The batcher: who gets which rows, in what order, and what a lost, late or poisoned request does to the others."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.serve.batching import POISON, Model, held, images, labels, running

from s2ap_defend.errors import EngineError
from s2ap_defend.serve.errors import DeadlineError, QueueFullError, TooLargeError

ROW_BYTES = 4


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 11), st.integers(0, 3), st.sampled_from(["keep", "keep", "cancel", "late"]), st.booleans()
    ),
    min_size=1,
    max_size=25,
)


@given(requests=REQUESTS, max_batch_rows=st.integers(1, 7), poisoned=st.integers(0, 60), quick=st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_caller_gets_exactly_its_rows(requests, max_batch_rows, poisoned, quick):
    async def scenario():
        model = Model()
        async with running(model, max_batch_rows=max_batch_rows, max_queue_rows=1000, max_queue_bytes=10**6) as batcher:
            if quick:
                await batcher.allow_here(images(0))
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


@pytest.mark.slow
def test_of_ten_thousand_requests_each_gets_exactly_its_rows_or_its_own_error():
    """Random rows and priorities; some are cancelled, some late, some poisoned, and some find the queue full."""
    draw = np.random.default_rng(0)
    counts = dict.fromkeys(("answered", "poisoned", "cancelled", "late", "refused"), 0)

    async def one(batcher, first: int) -> None:
        rows, fate = (
            int(draw.integers(1, 12)),
            draw.choice(["keep", "cancel", "late", "poison"], p=[0.7, 0.1, 0.1, 0.1]),
        )
        numbers = list(range(first, first + rows))
        if fate == "poison":
            numbers[int(draw.integers(rows))] = POISON
        due = asyncio.get_running_loop().time() + (float(draw.random()) * 0.002 if fate == "late" else 60)
        asked = asyncio.ensure_future(batcher.submit(images(*numbers), priority=int(draw.integers(3)), deadline_s=due))
        await asyncio.sleep(float(draw.random()) * 0.002)
        if fate == "cancel":
            asked.cancel()
        try:
            verdicts = await asked
        except asyncio.CancelledError:
            assert fate == "cancel"
            counts["cancelled"] += 1
        except DeadlineError:
            assert fate == "late"
            counts["late"] += 1
        except QueueFullError:
            counts["refused"] += 1
        except EngineError:
            assert POISON in numbers
            counts["poisoned"] += 1
        else:
            assert labels(verdicts) == numbers
            assert POISON not in numbers
            counts["answered"] += 1

    async def scenario():
        model = Model()
        limits = {"max_batch_rows": 7, "max_queue_rows": 300, "max_queue_bytes": 10**6}
        async with running(model, **limits) as batcher:
            await batcher.allow_here(images(0))
            for begin in range(0, 10_000, 100):
                # numbers begin above POISON: nothing else may be it
                await asyncio.gather(*(one(batcher, 1000 + 20 * number) for number in range(begin, begin + 100)))
            assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
        assert max(map(len, model.batches)) <= 7

    asyncio.run(scenario())
    assert sum(counts.values()) == 10_000
    assert all(counts.values()), counts


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
