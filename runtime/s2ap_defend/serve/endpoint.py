"""The path of one inference request: body, decode, queue, answer. A plain ASGI application, for speed."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.access import CALLER
from s2ap_defend.serve.body import BodyLimits, ClientGoneError, inflate, read_body
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.serve.exchange import EXCHANGE
from s2ap_defend.serve.metrics import CANCELLED, ERROR, SUCCESS
from s2ap_defend.serve.protocol import InferRequest
from s2ap_defend.serve.responses import error_response, outcome_of
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import peer_of
from s2ap_defend.serve.tickets import Ticket
from s2ap_defend.serve.timeline import Timeline, server_timing
from s2ap_defend.types import Verdicts

logger = logging.getLogger(__name__)

WATCH_AFTER_S = 0.02
HTTP = {"http.request.method": "POST"}

R = TypeVar("R", bound=InferRequest)


class Head(NamedTuple):
    """What a codec sees of a request before its body.

    Attributes:
        headers: By lower-case name.
        query: Of the URL.
        evidence: Whether the answer may carry evidence.
    """

    headers: Mapping[bytes, bytes]
    query: str
    evidence: bool = False


class Codec(Protocol[R]):
    """How a kind of request is written; pure functions that raise InputError and RequestError only.

    Attributes:
        inline_bytes: Bodies up to this size are decoded on the event loop, and their answers are encoded there; 0:
            decoding and encoding always go to a thread.
    """

    @property
    def inline_bytes(self) -> int: ...  # noqa: D102

    def decode(self, body: bytes, head: Head) -> R:
        """Decode an inflated body."""

    def encode(self, request: R, verdicts: Verdicts) -> Response:
        """Encode the answer."""


class InferenceEndpoint(Generic[R]):
    """Answers inference requests of one kind.

    Args:
        service: What serves them.
        codec: How they are written.
        decoders: Threads for what would hold up the event loop: large and compressed bodies.
        size_bytes: Largest body, both as sent and inflated.
        route: What traces call it.
    """

    def __init__(
        self, service: Service, codec: Codec[R], decoders: ThreadPoolExecutor, size_bytes: int, route: str
    ) -> None:
        self._service = service
        self._route = route
        self._codec = codec
        self._decoders = decoders
        config = service.config
        self._limits = BodyLimits(size_bytes, config.body_timeout_s, config.body_rate_bytes_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived_s, timeline = asyncio.get_running_loop().time(), Timeline()
        headers = dict(scope["headers"])
        tracer = self._service.tracer
        span = None if tracer is None else tracer.begin(EXCHANGE.get(), f"POST {self._route}", timeline, HTTP)
        outcome, response = ERROR, None
        try:
            request, verdicts = await self._infer(scope, headers, receive, arrived_s, timeline)
            if self._codec.inline_bytes:
                response = self._codec.encode(request, verdicts)
            else:
                loop = asyncio.get_running_loop()
                response = await loop.run_in_executor(self._decoders, self._codec.encode, request, verdicts)
            if CALLER.get().evidence:  # how long it took tells how many members were asked
                response.headers["server-timing"] = server_timing(timeline.steps())
            self._service.metrics.count_verdicts(verdicts)
            outcome = SUCCESS
        except ClientGoneError:
            outcome = CANCELLED
            return
        except asyncio.CancelledError:
            outcome = CANCELLED
            if not self._service.aborted:
                raise
            response = error_response(UnavailableError("the server stopped before this request had arrived"))
        except DefendError as error:
            outcome = outcome_of(error)
            response = error_response(error)
            if response.status_code == 500:
                logger.error("a request failed: %s", error)
        finally:
            duration_ns = time.perf_counter_ns() - timeline.arrived_ns
            self._service.metrics.count_request(outcome, duration_ns / 1e9)
            self._service.statistics.count_request(outcome == SUCCESS, duration_ns)
            if tracer is not None and span is not None:
                status = {} if response is None else {"http.response.status_code": response.status_code}
                failed = (
                    outcome if status.get("http.response.status_code", 500) >= 500 and outcome != CANCELLED else None
                )
                tracer.end(span, timeline, {**status, "url.path": scope["path"]}, failed)
        await response(scope, receive, send)

    async def _infer(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, arrived_s: float, timeline: Timeline
    ) -> tuple[R, Verdicts]:
        service = self._service
        names = scope.get("path_params", {})
        service.check_model(names.get("model", service.served.model), names.get("version"))
        service.check_ready()
        caller = CALLER.get()
        caller.check(1)
        with service.receiving.hold(peer_of(scope.get("client"))) as hold:
            length = headers.get(b"content-length")
            body = await read_body(receive, None if length is None else int(length), self._limits, hold)
            began_ns = time.perf_counter_ns()
            head = Head(headers, scope["query_string"].decode("latin-1"), caller.evidence)
            if len(body) <= self._codec.inline_bytes and b"content-encoding" not in headers:
                request = self._decode(body, head)
            else:
                loop = asyncio.get_running_loop()
                request = await loop.run_in_executor(self._decoders, self._decode, body, head)
            del body
            timeline.decode_ns = began_ns, time.perf_counter_ns()
            timeline.ticket = ticket = service.enqueue(request, caller, arrived_s)
        try:
            return request, await _answer(ticket, receive)
        finally:
            service.batcher.release(ticket)

    def _decode(self, body: bytes, head: Head) -> R:
        encoding = head.headers.get(b"content-encoding")
        if encoding is not None:
            body = inflate(body, encoding.decode("latin-1"), limit_bytes=self._limits.size_bytes)
        request = self._codec.decode(body, head)
        self._service.classifier.validate(request.images)  # alone, before it shares a batch
        return request


async def _answer(ticket: Ticket, receive: Receive) -> Verdicts:
    """Wait for the verdicts, or for the client to go; the latter is only watched when it takes a while."""
    watching: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    timer = loop.call_later(WATCH_AFTER_S, lambda: watching.append(loop.create_task(_watch(ticket, receive))))
    try:
        return await ticket.future
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _watch(ticket: Ticket, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not ticket.future.done():
        ticket.future.set_exception(ClientGoneError())
