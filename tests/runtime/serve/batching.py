"""A batcher whose model echoes numbers, and can be held inside a batch."""

import asyncio
import threading
from contextlib import asynccontextmanager

import numpy as np

from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.types import Verdicts

POISON = 666


PIXELS = (1, 1, 1)


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
