"""A defended classifier awaited from many tasks."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier, EngineError, InputError, Verdicts
from s2ap_defend.asynchronous import AsyncClassifier
from s2ap_defend.serve.errors import QueueFullError, TooLargeError


@pytest.fixture(scope="module")
def classifier(tiny_model_path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(tiny_model_path, device="cpu")


def asked(
    classifier: DefendedClassifier, work: Callable[[AsyncClassifier], Awaitable[object]], **limits: int
) -> object:
    async def main() -> object:
        async with AsyncClassifier(classifier, **limits) as ask:
            return await work(ask)

    return asyncio.run(main())


def same(left: Verdicts, right: Verdicts) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in Verdicts.FIELDS)


def test_tasks_that_ask_together_get_the_bits_that_each_gets_alone(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    parts = [random_images[i : i + 1 + i % 3] for i in range(0, 60, 3)]
    together = asked(classifier, lambda ask: asyncio.gather(*map(ask, parts)), max_batch=8)
    assert all(same(one, classifier(part)) for one, part in zip(together, parts, strict=True))


def test_a_call_larger_than_a_batch_is_answered_whole(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    assert same(asked(classifier, lambda ask: ask(random_images), max_batch=10), classifier(random_images))


def test_the_event_loop_goes_on_while_images_are_classified(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    ticks = 0

    async def work(ask: AsyncClassifier) -> None:
        nonlocal ticks
        waiting = asyncio.create_task(ask(np.tile(random_images, (8, 1, 1, 1))))
        while not waiting.done():
            ticks += 1
            await asyncio.sleep(0)

    asked(classifier, work)
    assert ticks > 10


def test_a_task_that_is_cancelled_leaves_the_others_their_answers_and_the_queue_empty(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    async def work(ask: AsyncClassifier) -> list[Verdicts]:
        tasks = [asyncio.create_task(ask(random_images[i : i + 4])) for i in range(0, 40, 4)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError | Verdicts) for one in done[::2])
        assert ask._batcher.queued_rows == 0
        return done[1::2]

    kept = asked(classifier, work, max_batch=4)
    assert all(same(one, classifier(random_images[i : i + 4])) for one, i in zip(kept, range(4, 40, 8), strict=True))


def test_one_call_that_is_refused_does_not_disturb_the_others(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    async def work(ask: AsyncClassifier) -> list[object]:
        return await asyncio.gather(ask(random_images[:2]), ask(random_images[:2] + 2), return_exceptions=True)

    good, bad = asked(classifier, work)
    assert same(good, classifier(random_images[:2]))
    assert isinstance(bad, InputError)


def test_more_than_may_wait_is_refused_at_once(classifier: DefendedClassifier, random_images: np.ndarray) -> None:
    async def work(ask: AsyncClassifier) -> list[object]:
        return await asyncio.gather(*(ask(random_images[:3]) for _ in range(6)), return_exceptions=True)

    found = asked(classifier, work, max_batch=2, max_waiting=4)
    assert any(isinstance(one, QueueFullError) for one in found)
    assert all(isinstance(one, QueueFullError | Verdicts) for one in found)
    with pytest.raises(TooLargeError, match="the queue holds 4 images"):
        asked(classifier, lambda ask: ask(random_images[:5]), max_waiting=4)


def test_a_classifier_that_is_not_open_says_how_it_is_opened_and_one_that_closes_leaves_nobody_waiting(
    classifier: DefendedClassifier, random_images: np.ndarray
) -> None:
    async def main() -> object:
        closed = AsyncClassifier(classifier, max_batch=1)
        with pytest.raises(EngineError, match=r"ask it inside `async with AsyncClassifier\(classifier\)`"):
            await closed(random_images[:1])
        async with closed as ask:
            waiting = asyncio.create_task(ask(np.tile(random_images, (4, 1, 1, 1))))
            await asyncio.sleep(0.05)
        return (await asyncio.gather(waiting, return_exceptions=True))[0]

    assert isinstance(asyncio.run(main()), EngineError | Verdicts)


@pytest.mark.parametrize("limit", ["max_batch", "max_waiting"])
def test_limits_that_nothing_fits_are_refused(classifier: DefendedClassifier, limit: str) -> None:
    with pytest.raises(EngineError, match=f"{limit} is 0, expected a number of images from 1"):
        AsyncClassifier(classifier, **{limit: 0})
