"""The path of one inference request: body, decode, queue, answer. A plain ASGI application, for speed."""

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.body import BodyLimits, ClientGoneError, inflate, read_body
from s2ap_defend.serve.errors import UnavailableError
from s2ap_defend.serve.metrics import CANCELLED, ERROR, SUCCESS
from s2ap_defend.serve.protocol import InferRequest
from s2ap_defend.serve.responses import error_response, outcome_of
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import peer_of
from s2ap_defend.serve.tickets import Ticket
from s2ap_defend.types import Verdicts

INLINE_BYTES = 64 * 1024
WATCH_AFTER_S = 0.02

Headers = Mapping[bytes, bytes]


class Codec(Protocol):
    """How a kind of request is written; pure functions that raise InputError only."""

    def decode(self, body: bytes, headers: Headers) -> InferRequest:
        """Decode an inflated body."""

    def encode(self, request: InferRequest, verdicts: Verdicts) -> Response:
        """Encode the answer."""


class InferenceEndpoint:
    """Answers inference requests of one kind.

    Args:
        service: What serves them.
        codec: How they are written.
        decoders: Threads for what would hold up the event loop: large and compressed bodies.
        size_bytes: Largest body, both as sent and inflated.
    """

    def __init__(self, service: Service, codec: Codec, decoders: ThreadPoolExecutor, size_bytes: int) -> None:
        self._service = service
        self._codec = codec
        self._decoders = decoders
        config = service.config
        self._limits = BodyLimits(size_bytes, config.body_timeout_s, config.body_rate_bytes_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        arrived_s, arrived_ns = asyncio.get_running_loop().time(), time.perf_counter_ns()
        headers: Headers = dict(scope["headers"])
        outcome = ERROR
        try:
            request, verdicts = await self._infer(scope, headers, receive, arrived_s)
            response = self._codec.encode(request, verdicts)
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
            if b"expect" in headers:  # its body will never be sent, so the connection cannot go on
                response.headers["connection"] = "close"
        finally:
            duration_ns = time.perf_counter_ns() - arrived_ns
            self._service.metrics.count_request(outcome, duration_ns / 1e9)
            self._service.statistics.count_request(outcome == SUCCESS, duration_ns)
        await response(scope, receive, send)

    async def _infer(
        self, scope: Scope, headers: Headers, receive: Receive, arrived_s: float
    ) -> tuple[InferRequest, Verdicts]:
        service = self._service
        names = scope.get("path_params", {})
        service.check_model(names.get("model", service.served.model), names.get("version"))
        service.check_ready()
        with service.receiving.hold(peer_of(scope.get("client"))) as hold:
            length = headers.get(b"content-length")
            body = await read_body(receive, None if length is None else int(length), self._limits, hold)
            if len(body) <= INLINE_BYTES and b"content-encoding" not in headers:
                request = self._decode(body, headers)
            else:
                loop = asyncio.get_running_loop()
                request = await loop.run_in_executor(self._decoders, self._decode, body, headers)
            del body
            ticket = service.enqueue(request, arrived_s)
        try:
            return request, await _answer(ticket, receive)
        finally:
            service.batcher.release(ticket)

    def _decode(self, body: bytes, headers: Headers) -> InferRequest:
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            body = inflate(body, encoding.decode("latin-1"), limit_bytes=self._limits.size_bytes)
        request = self._codec.decode(body, headers)
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
