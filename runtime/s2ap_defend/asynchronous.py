"""A defended classifier for asyncio: calls that come together run together, on a thread of their own."""

import asyncio
from types import TracebackType
from typing import Self

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import EngineError
from s2ap_defend.serve.batcher import Batcher
from s2ap_defend.serve.stepping import asked
from s2ap_defend.types import Float32, Verdicts


class AsyncClassifier:
    """A classifier that is awaited, by the batcher of the server.

        async with AsyncClassifier(classifier) as ask:
            verdicts = await ask(images)        # from as many tasks as there are

    Calls are batched: what arrives while the classifier is busy runs together, split again for its callers, who get the
    bits they would have got alone; with the staged executor they join between two waves. A task that is cancelled
    leaves the queue; what runs already runs to its end and is dropped. It belongs to the event loop on which it was
    opened.

    Args:
        classifier: What is asked; only by one thread.
        max_batch: Images that run together at most; a call with more runs in parts.
        max_waiting: Images that may wait; a call beyond is refused with an error, not delayed.

    Raises:
        EngineError: If one of these is below 1.
    """

    def __init__(self, classifier: DefendedClassifier, *, max_batch: int = 64, max_waiting: int = 4096) -> None:
        for name, value in (("max_batch", max_batch), ("max_waiting", max_waiting)):
            if value < 1:
                raise EngineError(f"{name} is {value}, expected a number of images from 1")
        self.classifier = classifier
        channels, height, width = classifier.input_shape
        self._batcher = Batcher(
            asked(classifier),
            max_batch_rows=max_batch,
            max_queue_rows=max_waiting,
            max_queue_bytes=max_waiting * channels * height * width * 4,
        )
        self._open = False

    async def __aenter__(self) -> Self:
        self._batcher.start()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._batcher.abort(EngineError("the classifier was closed while images waited; await them before"))
        await self._batcher.close(timeout_s=60.0)

    async def __call__(self, images: Float32) -> Verdicts:
        """Purify, detect and correct.

        Args:
            images: float32 [N, C, H, W] in [0, 1]; they must not change until they are answered.

        Raises:
            InputError: If the images do not fit the model.
            EngineError: If the engine fails, or this classifier is not open.
            TooLargeError: If they are more than may ever wait.
            QueueFullError: If they are more than may wait now.
        """
        checked = await asyncio.to_thread(self.classifier.validate, images)
        if not self._open:
            raise EngineError("this classifier is not open; ask it inside `async with AsyncClassifier(classifier)`")
        return await self._batcher.submit(checked)
