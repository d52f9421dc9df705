"""A model under its name: the instance that answers, how another one takes over, and what is done when it fails."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError
from s2ap_defend.manifest import Manifest
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.counts import Counts
from s2ap_defend.serve.device import BatchReport
from s2ap_defend.serve.errors import LoadError, UnavailableError
from s2ap_defend.serve.instance import Instance
from s2ap_defend.serve.loading import load_settled
from s2ap_defend.serve.metrics import Metrics, ModelMetrics
from s2ap_defend.serve.restarts import Restarts
from s2ap_defend.serve.served import ServedModel
from s2ap_defend.serve.waiting import Total
from s2ap_defend.serve.watched import look

__all__ = ["Model", "ModelState"]

logger = logging.getLogger(__name__)

ModelState = Literal["starting", "ready", "broken", "failed", "unloaded"]
STOP_TIMEOUT_S = 2.0


class Model:
    """Serves one model file.

    Args:
        name: Its name.
        classifier: The file as it was loaded.
        config: Limits, and how its file is loaded again.
        metrics: Of the server.
        queued: Bytes that wait for all models of the server.
        on_state: Called on the event loop with this model when `state` has changed.

    Attributes:
        state: 'starting' until the model is warm for the first time, then 'ready'; 'broken' while an engine that failed
            is started again; 'failed' when that is given up, or the model could not even run once, and then `failure`
            says why; 'unloaded' until it is loaded.
        has_served: Whether it has ever been ready.
        served: What the latest instance takes and gives.
        manifest: Its manifest.
        counts: What is counted of it.
    """

    def __init__(
        self,
        name: str,
        classifier: DefendedClassifier,
        config: ServerConfig,
        metrics: Metrics,
        *,
        queued: Total,
        on_state: Callable[["Model"], None],
    ) -> None:
        self.name = name
        self.state: ModelState = "starting"
        self.has_served = False
        self.failure: DefendError | None = None
        self._path, self._threads = classifier.path, classifier.threads
        self._config = config
        self._queued = queued
        self._on_state = on_state
        self._restarts = Restarts()
        self._signature = look([self._path])  # of the file that is in use
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reviving: asyncio.Task[None] | None = None
        self._instances: list[Instance] = []  # those too that finish what they have
        self._current: Instance | None = self._make(classifier)
        self.served: ServedModel = self._current.served
        self.manifest: Manifest = classifier.manifest
        self.metrics = ModelMetrics(
            metrics,
            name,
            self.served.version,
            pending_requests=lambda: sum(one.batcher.pending_requests for one in self._instances),
            pending_rows=lambda: sum(one.batcher.pending_rows for one in self._instances),
        )
        self.counts = Counts(self.metrics, live=config.expose_evidence)
        self.counts.watch(self._current.drift)

    @property
    def instance(self) -> Instance:
        """The instance that answers.

        Raises:
            UnavailableError: If there is none.
        """
        if self._current is None:
            raise UnavailableError(self._why_not())
        return self._current

    def describe(self) -> str:
        """What it is doing, in one line."""
        requests = sum(one.batcher.pending_requests for one in self._instances)
        rows = sum(one.batcher.queued_rows for one in self._instances)
        return f"{self.name} is {self.state}: {requests} requests wait or run, {rows} images wait"

    def check_ready(self) -> None:
        """Check that it takes requests.

        Raises:
            UnavailableError: If it does not.
        """
        if self.state != "ready":
            raise UnavailableError(self._why_not())

    def use(self) -> Instance:
        """The instance that answers a request; it lives as long as its context is open.

        Raises:
            UnavailableError: If there is none that is ready.
        """
        self.check_ready()
        return self.instance

    def start(self) -> None:
        """Begin to warm up."""
        self.instance.batcher.start()
        self._spawn(self._alone(self._begin))

    async def load(self) -> None:
        """Load the file again and let it take over once it is warm; what is under way finishes on the former instance.

        Raises:
            LoadError: If the file cannot be used, or its engine fails; the former instance serves on, if there is one.
            UnavailableError: If the server stops meanwhile.
        """
        task = self._spawn(self._alone(self._replace))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise UnavailableError("the server is stopping") from None
        except DefendError as error:
            raise LoadError(self._after(error)) from error

    async def unload(self) -> None:
        """Take no more requests until it is loaded; those that are under way are answered."""
        async with self._changing:
            former, self._current = self._current, None
            self._become("unloaded")
            self._retire(former)

    def load_if_changed(self) -> None:
        """Load the file again if it is another one than before, or was given up; an error is one line in the log."""
        self._spawn(self._try_to_load())

    def abort(self) -> None:
        """Answer everything that waits or runs with 503, and begin nothing any more."""
        for task in self._tasks:
            task.cancel()
        for one in self._instances:
            one.batcher.abort(UnavailableError("the server stopped before this request was answered"))

    async def stop(self) -> None:
        """Stop all that runs; a batch that does not end is left behind after two seconds."""
        self.abort()
        for stopped in await asyncio.gather(*(one.batcher.close(STOP_TIMEOUT_S) for one in self._instances)):
            if not stopped:
                logger.warning("a batch is still running and was left behind")

    def _why_not(self) -> str:
        return {
            "starting": "the model is not ready yet",
            "broken": f"the engine of model {self.name!r} failed and is started again; try again later",
            "failed": f"the model failed {self._restarts.failures} times and is not started again; the log says why",
            "unloaded": f"model {self.name!r} is unloaded; load it, or ask another one",
        }.get(self.state, "the model is not ready")

    def _make(self, classifier: DefendedClassifier) -> Instance:
        made = Instance(
            self.name,
            classifier,
            self._config,
            queued=self._queued,
            on_batch=self._count_batch,
            on_broken=self._on_broken,
        )
        self._instances.append(made)
        return made

    async def _begin(self) -> None:
        started = time.perf_counter()
        try:
            await self.instance.warm_up()
        except DefendError as error:
            self.failure = error
            self._become("failed")
            return
        self._restarts.ready()
        self._become("ready")
        logger.info("ready: model %s, warm after %.1f s", self.name, time.perf_counter() - started)

    async def _replace(self) -> None:
        started = time.perf_counter()
        try:
            classifier, signature = await asyncio.to_thread(load_settled, self._path, self._config, self._threads)
            instance = self._make(classifier)
            try:
                instance.batcher.start()
                await instance.warm_up()
            except BaseException:
                self._dismiss(instance)
                raise
        except DefendError:
            self.metrics.count_load("failed")
            raise
        former, self._current = self._current, instance
        self.served, self.manifest, self._signature = instance.served, classifier.manifest, signature
        self.counts.watch(instance.drift)
        self.metrics.count_load("loaded")
        if self.state != "broken":
            self._restarts = Restarts()  # somebody has put it right
        self._restarts.ready()
        self._become("ready")
        logger.info("ready: model %s, loaded and warm after %.1f s", self.name, time.perf_counter() - started)
        self._retire(former)

    async def _try_to_load(self) -> None:
        try:
            await self._alone(self._replace_changed)
        except DefendError as error:
            logger.error("%s", self._after(error))

    def _after(self, error: DefendError) -> str:
        """What a load that failed has led to."""
        return f"{error}; {'the former model serves on' if self.state == 'ready' else f'the model stays {self.state}'}"

    async def _replace_changed(self) -> None:
        changed = await asyncio.to_thread(look, [self._path]) != self._signature
        if self.state == "failed" or (changed and self.state != "unloaded"):
            await self._replace()

    def _on_broken(self, instance: Instance, error: DefendError) -> None:
        if instance is not self._current or self.state != "ready":
            return  # it has been replaced, or is not warm yet
        logger.error("the engine of model %s failed: %s", self.name, error)
        self.metrics.count_failure()
        self._current = None
        self._become("broken")
        self._dismiss(instance)
        if self._reviving is None or self._reviving.done():
            self._reviving = self._spawn(self._revive(error))

    async def _revive(self, error: DefendError) -> None:
        """Start the engine again until it answers, or that is given up."""
        failure = await self._restarts.revive(self.name, lambda: self._alone(self._replace_broken), error)
        if failure is not None and self.state == "broken":
            self.failure = failure
            self._become("failed")
            logger.critical("model %s: %s", self.name, self._why_not())

    async def _replace_broken(self) -> None:
        if self.state == "broken":  # nobody has loaded or unloaded it meanwhile
            await self._replace()

    def _retire(self, instance: Instance | None) -> None:
        """Let an instance go when nobody uses it any more."""
        if instance is not None:
            self._spawn(self._close(instance, wait=True))

    def _dismiss(self, instance: Instance) -> None:
        """Let an instance go now."""
        self._spawn(self._close(instance, wait=False))

    async def _close(self, instance: Instance, *, wait: bool) -> None:
        if wait:
            await instance.unused()
        await instance.batcher.close(STOP_TIMEOUT_S)
        self._instances.remove(instance)

    async def _alone(self, change: Callable[[], Coroutine[Any, Any, None]]) -> None:
        async with self._changing:
            await change()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _become(self, state: ModelState) -> None:
        self.state = state
        self.has_served |= state == "ready"
        self._on_state(self)

    def _count_batch(self, instance: Instance, report: BatchReport) -> None:
        self.counts.count_batch(report, instance.drift)
