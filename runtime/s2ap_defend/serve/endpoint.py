"""The path of one inference request: body, decode, queue, answer. A plain ASGI application, for speed."""

import asyncio
import logging
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Generic

from starlette.types import Receive, Scope, Send

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.access import CALLER
from s2ap_defend.serve.body import REQUESTS, WHOLE_BODY, ClientGoneError, inflate, read_body
from s2ap_defend.serve.edge import HEADERS
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.serve.exchange import EXCHANGE
from s2ap_defend.serve.instance import Instance
from s2ap_defend.serve.metrics import CANCELLED, ERROR, SUCCESS
from s2ap_defend.serve.responses import error_response, outcome_of
from s2ap_defend.serve.served import Codec, Head, R
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import peer_of
from s2ap_defend.serve.tickets import Ticket
from s2ap_defend.serve.timeline import Timeline, server_timing
from s2ap_defend.types import Verdicts

logger = logging.getLogger(__name__)

WATCH_AFTER_S = 0.02
HTTP = {"http.request.method": "POST"}


class InferenceEndpoint(Generic[R]):
    """Answers inference requests of one kind.

    Args:
        service: What serves them.
        codec_of: How they are written for the instance of a model.
        decoders: Threads for what would hold up the event loop: large and compressed bodies.
        route: What traces call it.
    """

    def __init__(
        self, service: Service, codec_of: Callable[[Instance], Codec[R]], decoders: ThreadPoolExecutor, route: str
    ) -> None:
        self._service = service
        self._codec_of = codec_of
        self._route = route
        self._decoders = decoders
        self._waiting: dict[Ticket, Receive] = {}  # oldest first
        self._watching: dict[Ticket, asyncio.Task[None]] = {}
        self._look: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived_s, timeline = asyncio.get_running_loop().time(), Timeline()
        headers = scope[HEADERS]
        tracer, model = self._service.tracer, None
        span = None if tracer is None else tracer.begin(EXCHANGE.get(), f"POST {self._route}", timeline, HTTP)
        outcome, response, answered = ERROR, None, None
        try:
            model = self._service.model(*named(scope))
            with model.use() as instance:
                codec = self._codec_of(instance)
                request, verdicts = await self._infer(instance, codec, scope, headers, receive, arrived_s, timeline)
                if codec.inline_bytes:
                    response = codec.encode(request, verdicts)
                else:
                    loop = asyncio.get_running_loop()
                    response = await loop.run_in_executor(self._decoders, codec.encode, request, verdicts)
            if CALLER.get().evidence:  # how long it took tells how many members were asked
                response.headers["server-timing"] = server_timing(timeline.steps())
            outcome, answered = SUCCESS, verdicts
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
            (model or self._service.default).counts.count_request(outcome, duration_ns, verdicts=answered)
            if tracer is not None and span is not None:
                status = {} if response is None else {"http.response.status_code": response.status_code}
                failed = (
                    outcome if status.get("http.response.status_code", 500) >= 500 and outcome != CANCELLED else None
                )
                about = {} if model is None else {"s2ap.model": model.name}
                tracer.end(span, timeline, {**status, **about, "url.path": scope["path"]}, failed)
        await response(scope, receive, send)

    async def _infer(
        self,
        instance: Instance,
        codec: Codec[R],
        scope: Scope,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        arrived_s: float,
        timeline: Timeline,
    ) -> tuple[R, Verdicts]:
        caller = CALLER.get()
        caller.check(1)
        with self._service.receiving.hold(peer_of(scope.get("client"))) as hold:
            length = headers.get(b"content-length")
            body = await read_body(
                receive, None if length is None else int(length), codec.limits, hold, whole=WHOLE_BODY in scope
            )
            began_ns = time.perf_counter_ns()
            head = Head(headers, scope["query_string"].decode("latin-1"), caller.evidence)
            if len(body) <= codec.inline_bytes and b"content-encoding" not in headers:
                request = _decode(instance, codec, body, head)
            else:
                loop = asyncio.get_running_loop()
                request = await loop.run_in_executor(self._decoders, _decode, instance, codec, body, head)
            del body
            timeline.decode_ns = began_ns, time.perf_counter_ns()
            alone = len(scope.get(REQUESTS, ())) == 1
            timeline.ticket = ticket = instance.enqueue(request, caller, arrived_s, alone=alone)
        try:
            answered = ticket.future.done()
            return request, ticket.future.result() if answered else await self._answer(ticket, receive)
        finally:
            instance.batcher.release(ticket)

    async def _answer(self, ticket: Ticket, receive: Receive) -> Verdicts:
        """Wait for the verdicts, or for the client to go; the latter is only watched when it takes a while."""
        self._waiting[ticket] = receive
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._watch_clients)
        try:
            return await ticket.future
        finally:
            del self._waiting[ticket]
            watching = self._watching.pop(ticket, None)
            if watching is not None:
                watching.cancel()

    def _watch_clients(self) -> None:
        """Watch whoever has waited for a while; one timer for all, for most requests are answered before it fires."""
        self._look, loop = None, asyncio.get_running_loop()
        latest_ns = time.perf_counter_ns() - int(1e9 * WATCH_AFTER_S)
        for ticket, receive in self._waiting.items():
            if ticket.arrived_ns <= latest_ns and ticket not in self._watching:
                self._watching[ticket] = loop.create_task(_watch(ticket, receive))
        if self._waiting:
            self._look = loop.call_later(WATCH_AFTER_S, self._watch_clients)


def named(scope: Scope) -> tuple[str | None, str | None]:
    """(model, version) of a request, each None where it is not said: in the path, else the model in the query."""
    names = scope.get("path_params", {})
    if "model" in names:
        return names["model"], names.get("version")
    found = dict(urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    return found.get("model"), None


def _decode(instance: Instance, codec: Codec[R], body: bytes, head: Head) -> R:
    encoding = head.headers.get(b"content-encoding")
    if encoding is not None:
        body = inflate(body, encoding.decode("latin-1"), limit_bytes=codec.limits.size_bytes)
    request = codec.decode(body, head)
    instance.classifier.validate(request.images)  # alone, before it shares a batch
    return request


async def _watch(ticket: Ticket, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    if not ticket.future.done():
        ticket.future.set_exception(ClientGoneError())
