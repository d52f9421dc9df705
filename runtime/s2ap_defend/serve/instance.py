"""One model file that is loaded: the batcher before it, how requests for it are written, and who still uses it."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.drift import DriftMonitor
from s2ap_defend.errors import DefendError
from s2ap_defend.images import chosen_resize
from s2ap_defend.serve.access import Caller
from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.serve.body import BodyLimits
from s2ap_defend.serve.classify import ImagesCodec
from s2ap_defend.serve.codecs import ProtocolCodec
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.device import BROKEN, BatchReport
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.serve.served import PUBLIC_OUTPUTS, InferRequest, ServedModel, largest_request
from s2ap_defend.serve.stepping import asked, computes
from s2ap_defend.serve.tickets import Ticket
from s2ap_defend.serve.waiting import Total
from s2ap_defend.types import Float32, Verdicts

__all__ = ["Instance"]


class Instance:
    """Answers requests for one model file, until another one takes over.

    Args:
        name: Of the model.
        classifier: What answers.
        config: Limits, and whether evidence is exposed.
        queued: Bytes that wait for all models of the server.
        on_batch: Called on the event loop after every batch.
        on_broken: Called there when the engine failed; what waited or ran has its answer then.

    Attributes:
        served: What it takes and gives.
        resize: How image files of another size are resized; None refuses them.
        protocol: How requests of the protocol are written.
        images: How requests of image files are.
        drift: Watches the images that it answers, None without references in the file.
    """

    def __init__(
        self,
        name: str,
        classifier: DefendedClassifier,
        config: ServerConfig,
        *,
        queued: Total,
        on_batch: Callable[["Instance", BatchReport], None],
        on_broken: Callable[["Instance", DefendError], None],
    ) -> None:
        self.classifier = classifier
        manifest = classifier.manifest
        self.served = served = ServedModel(
            model=name,
            shape=classifier.input_shape,
            classes=len(classifier.classes),
            outputs=Verdicts.FIELDS if config.expose_evidence else PUBLIC_OUTPUTS,
        )
        self.batcher = Batcher(
            asked(classifier),
            max_batch_rows=config.max_batch_rows,
            max_queue_rows=config.max_queue_rows,
            max_queue_bytes=config.max_queue_bytes,
            queued=queued,
            on_batch=partial(on_batch, self),
            on_broken=self._break,
        )
        limits = BodyLimits(config.max_body_bytes, config.body_timeout_s, config.body_rate_bytes_s)
        largest = min(config.max_body_bytes, largest_request(served, config.max_queue_rows))
        self.protocol = ProtocolCodec(served, replace(limits, size_bytes=largest))
        self.resize = chosen_resize(config.resize, manifest.input.resize)
        self.images = ImagesCodec(
            served,
            classifier.classes,
            limits,
            most_images=min(config.max_queue_rows, config.max_queue_bytes // (4 * math.prod(served.shape))),
            on_white=config.on_white,
            resize=self.resize,
            trained=manifest.input.resize,
        )
        self.drift = DriftMonitor(manifest) if manifest.test.calibration.reference_ratios else None
        self._max_batch_rows = config.max_batch_rows
        self._on_broken = on_broken
        self._failure: DefendError | None = None
        self._warming: asyncio.Task[None] | None = None
        self._users = 0
        self._on_unused: asyncio.Future[None] | None = None

    async def warm_up(self) -> None:
        """Run every stage on every size of batch, and learn how long batches take; the batcher is started.

        Raises:
            EngineError: If the engine fails.
        """
        self._warming = asyncio.ensure_future(self._warm())
        try:
            await self._warming
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            raise self._failure from None

    def enqueue(
        self,
        request: InferRequest,
        caller: Caller,
        arrived_s: float,
        left_s: float | None = None,
        *,
        alone: bool = False,
    ) -> Ticket:
        """Queue a request that arrived at `arrived_s` of the event loop's clock; see `Batcher.enqueue`.

        Its deadline is the earlier of its own timeout and `left_s` seconds, which its connection sets; None for none.

        Raises:
            RateLimitError: If its caller has asked about too many images already.
            TooLargeError: If it has more images than its caller may ask about, or than the queue holds.
            QueueFullError: If it finds no room, or would not be in time.
            DeadlineError: If it would not be in time even alone.
        """
        rows = len(request.images)
        caller.check(rows)
        deadline_s = math.inf
        for seconds in (request.timeout_s, left_s):
            if seconds is not None:
                deadline_s = min(deadline_s, arrived_s + seconds)
        ticket = self.batcher.enqueue(request.images, priority=request.priority, deadline_s=deadline_s, alone=alone)
        caller.charge(rows)
        return ticket

    async def probe(self) -> None:
        """Ask the model about one grey image; it counts nowhere.

        Raises:
            EngineError: If the model fails.
        """
        await self.batcher.probe(self._grey(1))

    def __enter__(self) -> "Instance":
        """Let it live until the end of a request, which is that of the context; there may be many at a time."""
        self._users += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users and self._on_unused is not None and not self._on_unused.done():
            self._on_unused.set_result(None)

    async def unused(self) -> None:
        """Wait until no request uses it."""
        if self._users:
            self._on_unused = asyncio.get_running_loop().create_future()
            await self._on_unused

    async def _warm(self) -> None:
        largest = self._max_batch_rows
        for rows in sorted({largest, *(2**power for power in range(largest.bit_length()))}):
            images = self._grey(rows)
            if rows in {1, largest}:
                await self.batcher.warm_up(images)
            else:
                await self.batcher.probe(images, every_stage=True)
        if computes(self.classifier):
            await self.batcher.allow_here(self._kinds())

    def _kinds(self) -> Float32:
        """Images [4, C, H, W] of which some should need more members than others: grey, black, white and noise."""
        noise = np.random.default_rng(0).random((1, *self.served.shape), dtype=np.float32)
        return np.concatenate([self._grey(1), np.zeros_like(noise), np.ones_like(noise), noise])

    def _grey(self, rows: int) -> Float32:
        return np.full((rows, *self.served.shape), 0.5, dtype=np.float32)

    def _break(self, error: DefendError) -> None:
        if self._failure is not None:
            return
        self._failure = error
        self.batcher.abort(UnavailableError(BROKEN))
        if self._warming is not None and not self._warming.done():
            self._warming.cancel()
        self._on_broken(self, error)
