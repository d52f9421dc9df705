"""Requests with deadlines, and large ones with small ones: what is refused, what runs, and who waits for whom."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from tests.runtime.serve.batching import Model, echo, held, images, labels, running
from tests.runtime.serve.live import live, until

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError
from s2ap_defend.serve.errors import DeadlineError, QueueFullError
from s2ap_defend.serve.pace import Pace

BATCH, START_S, ROW_S = 16, 0.005, 0.002
CAPACITY = BATCH / (START_S + BATCH * ROW_S)  # images a second


def test_the_pace_of_a_batch_is_known_from_those_of_about_its_size():
    pace = Pace(32)
    assert pace.batch_s(5) == pace.total_s(100) == 0.0
    pace.observe(1, 2.0)
    assert (pace.batch_s(1), pace.batch_s(3)) == (2.0, 6.0)
    pace.observe(32, 33.0)
    assert [pace.batch_s(rows) for rows in (1, 2, 17, 32)] == [2.0, 3.0, 18.0, 33.0]
    assert pace.total_s(70) == 33.0 + 33.0 + 7.0
    pace.observe(32, 53.0)  # it has become slower, and is believed by a fifth
    assert pace.batch_s(32) == pytest.approx(37.0)
    pace.observe(32, 1e6)  # something held it up
    assert pace.batch_s(32) == pytest.approx(37.0 * 1.2)
    assert pace.batch_s(1) == 2.0


@pytest.mark.parametrize(("load", "timeout_s", "rows"), [(1.2, 0.5, 4), (2.0, 0.5, 4), (5.0, 0.5, 8), (5.0, 1.0, 8)])
def test_under_overload_most_of_the_capacity_is_answered_in_time(load, timeout_s, rows):
    def model(batch):
        time.sleep(START_S + ROW_S * len(batch))
        return echo(batch)

    async def scenario():
        limits = {"max_batch_rows": BATCH, "max_queue_rows": 1024, "max_queue_bytes": 10**6}
        async with running(model, **limits) as batcher:
            for size in (1, BATCH):
                await batcher.warm_up(images(*range(size)))
            loop, rng = asyncio.get_running_loop(), np.random.default_rng(0)
            began, due, in_time, refused = loop.time(), 0.0, 0, 0

            async def ask():
                nonlocal in_time, refused
                asked = loop.time()
                try:
                    await batcher.submit(images(*range(rows)), deadline_s=asked + timeout_s)
                except QueueFullError:
                    refused += 1
                    assert loop.time() - asked < timeout_s
                except DefendError:
                    return
                else:
                    in_time += rows * (loop.time() - asked <= timeout_s)

            async with asyncio.TaskGroup() as group:
                while due < 1.2:
                    await asyncio.sleep(max(0.0, began + due - loop.time()))
                    group.create_task(ask())
                    due += rng.exponential(rows / (load * CAPACITY))
            return in_time / (1.2 * CAPACITY), refused

    share, refused = asyncio.run(scenario())
    assert share > 0.5  # .9 and more where the processor is free; it was .06
    assert refused or load < 2


def test_what_cannot_be_in_time_is_not_run_and_costs_its_neighbours_nothing():
    async def scenario():
        async with held(max_batch_rows=4) as (model, batcher, _):
            batcher._pace.observe(4, 0.2)
            now = asyncio.get_running_loop().time()
            late = asyncio.ensure_future(batcher.submit(images(1), deadline_s=now + 0.9))
            fine = asyncio.ensure_future(batcher.submit(images(2), deadline_s=now + 60))
            await asyncio.sleep(0.75)
            model.open.set()
            with pytest.raises(DeadlineError, match="would pass before its answer"):
                await late
            assert labels(await fine) == [2]
            assert model.batches == [[0], [2]]

    asyncio.run(scenario())


class SlowClassifier(DefendedClassifier):
    """A defended classifier that takes 100 ms more for a batch."""

    def __call__(self, images):
        time.sleep(0.1)
        return super().__call__(images)


def test_a_server_says_at_once_that_a_timeout_is_too_short_and_when_to_come_back(tiny_model_path, batch):
    slow = SlowClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")
    with live(slow, max_batch_rows=1) as server, ThreadPoolExecutor(12) as pool, httpx.Client(timeout=30) as client:
        tensor = {
            "name": "image",
            "shape": [1, *batch.shape[1:]],
            "datatype": "FP32",
            "data": batch[0].ravel().tolist(),
        }

        def ask(timeout_s: float, priority: int = 5) -> httpx.Response:
            parameters = {"timeout": int(timeout_s * 1e6), "priority": priority}
            body = json.dumps({"inputs": [tensor], "parameters": parameters})
            return client.post(server.url + server.infer, content=body)

        assert ask(0.05).status_code == 504  # not even alone
        waiting = [pool.submit(ask, 20.0, 1) for _ in range(12)]
        until(lambda: server.service.default.instance.batcher.queued_rows >= 10)
        refused = ask(0.6)
        assert refused.status_code == 429
        assert "the request's timeout leaves" in refused.json()["error"]
        assert int(refused.headers["retry-after"]) == 2
        assert [one.result().status_code for one in waiting] == [200] * 12


def test_a_server_answers_small_requests_while_large_ones_are_under_way(tiny_model_path, batch):
    slow = SlowClassifier.load(tiny_model_path, device="cpu", threads=1, executor="whole")
    with live(slow, max_batch_rows=8) as server, ThreadPoolExecutor(2) as pool, httpx.Client(timeout=30) as client:

        def ask(rows: int) -> float:
            tensor = {"name": "image", "shape": [rows, 1, 8, 8], "datatype": "FP32", "data": [0.5] * (rows * 64)}
            response = client.post(server.url + server.infer, json={"inputs": [tensor]})
            assert response.json()["outputs"][0]["shape"] == [rows]
            return time.monotonic()

        large = [pool.submit(ask, 64) for _ in range(2)]
        until(lambda: server.service.default.instance.batcher.pending_rows == 128)
        assert ask(1) < min(one.result() for one in large)


def test_a_small_request_waits_for_one_batch_of_a_large_one_and_not_for_all_of_it():
    async def scenario():
        async with held(max_batch_rows=4, max_queue_rows=100) as (model, batcher, _):
            large = [asyncio.ensure_future(batcher.submit(images(*range(first, first + 20)))) for first in (100, 200)]
            await asyncio.sleep(0)
            small = asyncio.ensure_future(batcher.submit(images(1)))
            await asyncio.sleep(0)
            model.open.set()
            assert labels(await small) == [1]
            assert [labels(await one) for one in large] == [list(range(100, 120)), list(range(200, 220))]
            assert model.batches[:3] == [[0], [100, 200, 1, 101], [201, 202, 102, 103]]
            assert all(len(one) == 4 for one in model.batches[1:-1])

    asyncio.run(scenario())


def test_a_large_request_alone_fills_every_batch_and_a_full_batch_of_small_ones_is_not_split():
    async def scenario():
        model = Model()
        async with running(model, max_batch_rows=8, max_queue_rows=100) as batcher:
            assert labels(await batcher.submit(images(*range(20)))) == list(range(20))
            small = [asyncio.ensure_future(batcher.submit(images(2 * i, 2 * i + 1))) for i in range(8)]
            for i, task in enumerate(small):
                assert labels(await task) == [2 * i, 2 * i + 1]
        assert list(map(len, model.batches)) == [8, 8, 4, 8, 8]

    asyncio.run(scenario())


def test_cancelling_a_large_request_in_the_middle_gives_back_its_place():
    async def scenario():
        async with held(max_batch_rows=4, max_queue_rows=100) as (model, batcher, first):
            large = asyncio.ensure_future(batcher.submit(images(*range(100, 120))))
            await asyncio.sleep(0)
            model.entered.clear()
            model.open.set()
            await first
            model.open.clear()
            await model.is_held()
            await asyncio.sleep(0)
            large.cancel()
            await asyncio.wait([large])
            assert (batcher.queued_rows, batcher.queued_bytes) == (0, 0)
            model.open.set()
            assert labels(await batcher.submit(images(7))) == [7]
            assert model.batches[-1] == [7]

    asyncio.run(scenario())
