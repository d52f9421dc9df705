"""Lone images of a quick model: answered on the event loop, as long as the model is quick."""

import asyncio
import threading
import time

import numpy as np
import pytest
from tests.runtime.serve.batching import POISON, echo, images, labels, running

from s2ap_defend import DefendedClassifier
from s2ap_defend.errors import EngineError
from s2ap_defend.serve.quick import BOUND_S, LATE_S, PAUSE_S, Quickness
from s2ap_defend.serve.stepping import computes

SLOW = 9  # an image that takes long
GREY = images(0)


class Model:
    """Echoes, fails on POISON, takes its time over SLOW, and remembers where each batch ran."""

    def __init__(self) -> None:
        self.ran: list[tuple[list[int], bool]] = []

    def __call__(self, batch):
        numbers = batch[:, 0, 0, 0].astype(int).tolist()
        self.ran.append((numbers, threading.current_thread().name == "s2ap-device"))
        if SLOW in numbers:
            time.sleep(1.5 * LATE_S)
        if POISON in numbers:
            raise ValueError("poisoned")
        return echo(batch)


def asked(scenario, model: Model, kinds: np.ndarray = GREY) -> list[tuple[list[int], bool]]:
    """What ran in a scenario, and whether the thread of the device ran it, once the model was measured on `kinds`."""

    async def session():
        async with running(model) as batcher:
            await batcher.allow_here(kinds)
            model.ran.clear()
            await scenario(batcher)

    asyncio.run(session())
    return model.ran


def test_a_lone_image_is_answered_on_the_event_loop_and_several_by_the_device():
    async def scenario(batcher):
        assert labels(await batcher.submit(images(1))) == [1]
        assert labels(await batcher.submit(images(2, 3))) == [2, 3]
        together = [asyncio.ensure_future(batcher.submit(images(number))) for number in (4, 5)]
        assert [labels(await one) for one in together] == [[4], [5]]
        assert labels(await batcher.submit(images(6), deadline_s=asyncio.get_running_loop().time() + 60)) == [6]
        assert (batcher.pending_rows, batcher.queued_bytes) == (0, 0)

    assert asked(scenario, Model()) == [([1], False), ([2, 3], True), ([4, 5], True), ([6], False)]


def test_who_is_alone_has_its_answer_at_once():
    async def scenario(batcher):
        for numbers, at_once in (([1], True), ([2, 3], False)):
            ticket = batcher.enqueue(images(*numbers), alone=True)
            assert ticket.future.done() == at_once
            assert labels(await ticket.future) == numbers
            batcher.release(ticket)

    assert asked(scenario, Model()) == [([1], False), ([2, 3], True)]


def test_a_model_that_was_not_measured_or_is_slow_on_one_kind_of_image_never_runs_there():
    async def scenario(batcher):
        assert labels(await batcher.submit(images(1))) == [1]

    assert asked(scenario, Model(), images(0, SLOW)) == [([1], True)]
    model = Model()

    async def unmeasured():
        async with running(model) as batcher:
            await scenario(batcher)

    asyncio.run(unmeasured())
    assert model.ran == [([1], True)]


def test_after_an_image_that_took_long_the_device_has_the_next_ones():
    async def scenario(batcher):
        for number in (1, SLOW, 2):
            assert labels(await batcher.submit(images(number))) == [number]

    assert asked(scenario, Model()) == [([1], False), ([SLOW], False), ([2], True)]


def test_an_image_on_which_the_model_fails_has_its_error_from_the_device():
    async def scenario(batcher):
        with pytest.raises(EngineError, match="the model failed: ValueError"):
            await batcher.submit(images(POISON))
        assert labels(await batcher.submit(images(1))) == [1]

    assert asked(scenario, Model()) == [([POISON], False), ([POISON], True), ([1], False)]


def test_an_image_that_comes_while_the_device_works_waits_for_it():
    async def scenario(batcher):
        first = asyncio.ensure_future(batcher.submit(images(1, 2)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.running_rows == 2
        assert labels(await batcher.submit(images(3))) == [3]
        assert labels(await first) == [1, 2]

    ran = asked(scenario, Model())
    assert ran[0] == ([1, 2], True)
    assert [numbers for numbers, _ in ran] == [[1, 2], [3]]


def test_only_images_beyond_the_bound_pause_it_three_in_a_row_or_one_that_is_late():
    quickness = Quickness()
    assert not quickness.allows(0.0)
    assert quickness.measure([BOUND_S, BOUND_S / 2])
    for beyond in (2 * BOUND_S, 2 * BOUND_S, BOUND_S / 2, BOUND_S / 2, 2 * BOUND_S):
        quickness.observe(beyond, 0.0)
    assert quickness.allows(0.0)
    quickness.observe(2 * BOUND_S, 1.0)
    assert not quickness.allows(1.0)
    assert quickness.allows(1.0 + PAUSE_S)
    quickness.observe(2 * LATE_S, 100.0)
    assert not quickness.allows(100.0 + PAUSE_S / 2)
    assert not quickness.measure([BOUND_S])
    assert not quickness.allows(1000.0)


def test_who_is_called_in_another_way_than_a_classifier_is_not_known_to_compute_alone(classifier):
    class Remote(DefendedClassifier):
        def __call__(self, images):
            raise NotImplementedError

    assert computes(classifier)
    assert not computes(Remote(classifier.path, classifier.manifest, classifier.executor))
