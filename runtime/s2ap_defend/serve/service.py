"""The state of one server: its models, who may ask them, and whether it takes requests."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

from s2ap_defend import __version__
from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import DefendError
from s2ap_defend.serve import extras
from s2ap_defend.serve.access import Access
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.errors import ProtocolError, UnavailableError, UnknownModelError
from s2ap_defend.serve.keys import read_keys
from s2ap_defend.serve.metrics import Metrics
from s2ap_defend.serve.model import STOP_TIMEOUT_S, Model, ModelState
from s2ap_defend.serve.shares import Shares
from s2ap_defend.serve.waiting import Total
from s2ap_defend.serve.watched import Watched, Watcher

__all__ = ["Service"]

logger = logging.getLogger(__name__)

State = ModelState | Literal["draining"]
WORST_FIRST: tuple[ModelState, ...] = ("failed", "broken", "starting")


class Service:
    """Serves one or several models.

    Args:
        classifiers: The models by name; the first one is asked where a request names none.
        config: Limits, and whether evidence is exposed.

    Attributes:
        models: The models by name.
        default: The first of them. What reaches none, because it names another or is denied, is counted there.
        on_state: Called on the event loop when the state of a model or of the server has changed.
        draining: Whether the server is about to stop.
        failure: Why the server stops, where a model could not even run once.
        on_failure: Called on the event loop then.
        aborted: Whether what is unfinished is given up, because the server's grace is over.
        receiving: Bytes of bodies that have arrived and are not queued yet.
        access: Who may ask what.
        certificate: By which clients know the server, None without TLS.
        watcher: Reads files again that change while it serves.
        tracer: Makes spans of inference requests; None: nobody does.
    """

    def __init__(self, classifiers: Mapping[str, DefendedClassifier], config: ServerConfig) -> None:
        self.config = config
        self.on_state: list[Callable[[], None]] = []
        self.draining = self.aborted = False
        self.failure: DefendError | None = None
        self.on_failure: Callable[[], None] | None = None
        self.receiving = Shares(config.max_queue_bytes)
        provider = next(iter(classifiers.values())).provider
        self.metrics = Metrics(
            build={"version": __version__, "provider": provider},
            evidence=config.expose_evidence,
        )
        queued = Total()
        self.models: dict[str, Model] = {}
        for name, classifier in classifiers.items():
            self.models[name] = Model(name, classifier, config, self.metrics, queued=queued, on_state=self._on_model)
        self.default = next(iter(self.models.values()))
        keys = None if config.keys is None else read_keys(config.keys)
        self.access = Access(keys, evidence=config.expose_evidence, on_denied=self.default.metrics.count_denied)
        self.certificate = config.certificate()
        self.watcher = Watcher(self._watched())
        self.tracer = extras.tracing().otlp_tracer() if config.otel else None

    @property
    def state(self) -> State:
        """That of the model which is worst off, but for those that are unloaded; 'draining' before the stop."""
        if self.draining:
            return "draining"
        states = {model.state for model in self.models.values()} - {"unloaded"}
        return next((state for state in WORST_FIRST if state in states), "ready" if states else "unloaded")

    async def start(self) -> None:
        """Start the models; returns before they are ready."""
        self.watcher.start()
        for model in self.models.values():
            model.start()

    def describe(self) -> str:
        """What it is doing, in one line."""
        models = "; ".join(model.describe() for model in self.models.values())
        return f"{self.state}: {models}; {self.receiving.total} bytes of bodies have arrived in part"

    def model(self, name: str | None, version: str | None = None) -> Model:
        """The model that a request names, the first one if it names none.

        Raises:
            UnknownModelError: If another model or version is served here.
        """
        if name is None:
            return self.default
        model = self.models.get(name)
        if model is None:
            known = ", ".join(map(repr, self.models))
            raise UnknownModelError(f"there is no model {name[:80]!r}; this server has {known}")
        if version not in {None, model.served.version}:
            raise UnknownModelError(
                f"model {name!r} has no version {version[:20] if version else ''!r}; it has {model.served.version!r}"
            )
        return model

    def takes(self, model: Model) -> bool:
        """Whether new requests for a model should be sent here."""
        return model.state == "ready" and not self.draining

    def check_ready(self) -> None:
        """Check that new requests should be sent here: every model that is loaded is ready, and there is one.

        Raises:
            UnavailableError: If not, or the server is stopping.
        """
        if self.draining:
            raise UnavailableError("the server is stopping")
        loaded = [model for model in self.models.values() if model.state != "unloaded"]
        for model in loaded or [self.default]:
            model.check_ready()

    def check_live(self) -> None:
        """Check that it can serve again by itself.

        Raises:
            UnavailableError: If all models have been given up.
        """
        if all(model.state == "failed" for model in self.models.values()):
            self.default.check_ready()

    def check_control(self) -> None:
        """Check that models may be loaded and unloaded by callers who have the right to it.

        Raises:
            ProtocolError: If this server does not let anybody do it.
        """
        if self.config.keys is None and not self.config.allow_load:
            raise ProtocolError(
                "this server lets nobody load or unload models; start it with --allow-load, or with --keys, one of "
                "which has the right admin",
                status=403,
            )

    def load_changed(self) -> None:
        """Load every model again whose file is another one than before."""
        for model in self.models.values():
            model.load_if_changed()

    def drain(self) -> None:
        """Tell load balancers that no more requests should come; those that do are still served."""
        self.draining = True
        for model in self.models.values():
            self._on_model(model)

    def abort(self) -> None:
        """Answer everything that waits or runs with 503."""
        self.aborted = True
        for model in self.models.values():
            model.abort()

    async def stop(self) -> None:
        """Stop all models, and send what spans there are."""
        self.drain()
        self.watcher.stop()
        for model in self.models.values():
            await model.stop()
        if self.tracer is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.tracer.close, STOP_TIMEOUT_S)

    def _on_model(self, model: Model) -> None:
        model.metrics.set_ready(None if model.state == "unloaded" else self.takes(model))
        for tell in self.on_state:
            tell()
        if model.state == "failed" and not model.has_served:
            self.failure = model.failure
            if self.on_failure is not None:
                self.on_failure()

    def _watched(self) -> Iterator[Watched]:
        if self.config.keys is not None:
            yield Watched("keys", [self.config.keys], self._read_keys)
        if self.certificate is not None:
            self.metrics.export_expiry(lambda certificate=self.certificate: certificate.expires_s)  # type: ignore[misc]
            yield Watched("certificate and its key", self.certificate.paths, self.certificate.renew)

    def _read_keys(self) -> None:
        if self.config.keys is not None:
            self.access.replace(read_keys(self.config.keys))
