"""What a lost, late or poisoned request does to the others of a batch."""

import asyncio
import threading
import time

import pytest
from tests.runtime.serve.batching import POISON, Model, echo, held, images, labels, running

from s2ap_defend.errors import EngineError
from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.serve.errors import DeadlineError, UnavailableError


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
