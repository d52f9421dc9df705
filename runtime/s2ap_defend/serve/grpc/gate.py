"""What holds for every call over gRPC: who may make it, how many a peer may have, how long a message may take."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from s2ap_defend.errors import DefendError
from s2ap_defend.serve.access import CALLER, Access, grpc_need, presented
from s2ap_defend.serve.access_log import AccessLog
from s2ap_defend.serve.errors import BodyTimeoutError, ProtocolError, QueueFullError, RequestError
from s2ap_defend.serve.exchange import EXCHANGE, REQUEST_ID, named
from s2ap_defend.serve.responses import explain
from s2ap_defend.serve.shares import Shares, peer_of

__all__ = ["BLAMED", "Gate", "abort", "code_of", "peer_name"]

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # RESOURCE_EXHAUSTED would invite to try again
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

BLAMED = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes for which the server is to blame, by OpenTelemetry's conventions for spans of RPC."""

Call = Callable[[Any, grpc.aio.ServicerContext], Any]


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets calls through to their handlers.

    A handler of one message is called before its message has arrived, so that what is announced and does not come is
    counted and given up; on the wire it is the same as a stream of one message.

    Args:
        access: Who may ask what.
        calls: How many calls there may be, and for each peer.
        message_timeout_s: Seconds that the only message of a call may take.
        access_log: Where calls are logged, None for nowhere.

    Attributes:
        calls: Those that are open.
    """

    def __init__(
        self, access: Access, calls: Shares, message_timeout_s: float, access_log: AccessLog | None = None
    ) -> None:
        self._access = access
        self._access_log = access_log
        self.calls = calls
        self._timeout_s = message_timeout_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The handler of a call, within limits; None where there is none."""
        handler = await continuation(details)
        if handler is None:
            return None
        headers = [(key.encode(), _as_bytes(value)) for key, value in details.invocation_metadata]
        exchange = named(headers)
        EXCHANGE.set(exchange)
        denied = None
        try:
            caller = self._access.admit(presented(headers), grpc_need(details.method))
        except RequestError as error:
            denied = error
        else:
            CALLER.set(caller)
            exchange.key = None if caller.key is None else caller.key.name
        answer = handler.unary_unary or handler.unary_stream or handler.stream_stream or handler.stream_unary
        if handler.response_streaming:
            make, within = grpc.stream_stream_rpc_method_handler, self._stream
        else:
            make, within = grpc.stream_unary_rpc_method_handler, self._single
        call = self._logged(within(answer, handler.request_streaming, denied), details.method)
        return make(call, _checked(handler.request_deserializer), handler.response_serializer)

    def _logged(self, call: Call, method: str) -> Call:
        async def logged(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
            began_s, exchange = time.perf_counter(), EXCHANGE.get()
            context.set_trailing_metadata(((REQUEST_ID, exchange.id),))
            try:
                return await call(messages, context)
            except DefendError as error:  # of what could not be read
                await abort(error, context)
            except asyncio.CancelledError:
                context.set_code(grpc.StatusCode.CANCELLED)
                raise
            finally:
                if self._access_log is not None:
                    seconds = time.perf_counter() - began_s
                    self._access_log.grpc(exchange, peer_name(context), method, _code_name(context), seconds)

        return logged

    def _single(self, answer: Call, streaming: bool, denied: RequestError | None) -> Call:
        async def call(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
            peer = await self._enter(context, denied)
            try:
                return await answer(messages if streaming else await self._only(messages, context), context)
            finally:
                self.calls.give_back(peer, 1)

        return call

    def _stream(self, answer: Call, streaming: bool, denied: RequestError | None) -> Call:
        async def call(messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
            peer = await self._enter(context, denied)
            try:
                answers = answer(messages if streaming else await self._only(messages, context), context)
                if inspect.isawaitable(answers):  # it writes them by itself
                    await answers
                    return
                async for message in answers:
                    await context.write(message)
            finally:
                self.calls.give_back(peer, 1)

        return call

    async def _enter(self, context: grpc.aio.ServicerContext, denied: RequestError | None) -> str:
        if denied is not None:
            await abort(denied, context)
        peer = peer_name(context)
        if not self.calls.take(peer, 1):
            await abort(QueueFullError("too many calls are open already; try again later"), context)
        return peer

    async def _only(self, messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:  # noqa: ANN401
        try:
            return await asyncio.wait_for(anext(aiter(messages)), self._timeout_s)
        except TimeoutError:
            await abort(BodyTimeoutError(f"the message did not arrive within {self._timeout_s:g} s"), context)
        except StopAsyncIteration:
            await abort(ProtocolError("the call has no message"), context)


def _checked(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def checked(data: bytes) -> Any:  # noqa: ANN401 - a message
        try:
            return read(data)
        except DecodeError as error:
            raise ProtocolError("the message is none of this call: its bytes cannot be read") from error

    return checked


def code_of(error: DefendError) -> grpc.StatusCode:
    """The code with which a call ends that failed so."""
    return CODES.get(explain(error)[0], grpc.StatusCode.INTERNAL)


async def abort(error: DefendError, context: grpc.aio.ServicerContext) -> NoReturn:
    """End a call with an error."""
    reason = explain(error)[1]
    seconds = error.headers.get("retry-after") if isinstance(error, RequestError) else None
    again = () if seconds is None else (("grpc-retry-pushback-ms", str(1000 * int(seconds))),)
    trailing = (*context.trailing_metadata(), *again)
    await context.abort(code_of(error), reason, trailing)
    raise error  # for readers of types: abort does not return


def _code_name(context: grpc.aio.ServicerContext) -> str:
    code = context.code()
    return str(code.name) if isinstance(code, grpc.StatusCode) else "OK"


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def peer_name(context: grpc.aio.ServicerContext) -> str:
    """Who shares a budget, from `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`."""
    address = context.peer().partition(":")[2].rpartition(":")[0].replace("%5B", "[").replace("%5D", "]")
    return peer_of((address.strip("[]"), 0))
