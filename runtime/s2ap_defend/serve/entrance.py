"""What a TLS connection is before its handshake is done: counted, and given little time, like any other."""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.utils import get_remote_addr

from s2ap_defend.serve.certificate import Certificate
from s2ap_defend.serve.connection import Connection
from s2ap_defend.serve.shares import Limits, peer_of

__all__ = ["Entrance"]

SHUTDOWN_S = 600.0  # that a client may take to read its last answer


class Entrance(asyncio.Protocol):
    """A connection until its handshake; then it is a Connection over TLS.

    The event loop's own way to serve TLS would count nobody before the handshake is done, and take a certificate once.

    Args:
        limits: What all connections share.
        certificate: By which the server is known.
        options: Of the Connection, uvicorn's.
    """

    def __init__(self, *, limits: Limits, certificate: Certificate, **options: Any) -> None:  # noqa: ANN401 - uvicorn's
        self._limits = limits
        self._certificate = certificate
        self._make: Callable[[], Connection] = lambda: Connection(limits=limits, **options)
        self._others = options["server_state"].connections
        self._loop = asyncio.get_running_loop()
        self._early: list[bytes] = []
        self._ended = self._lost = self._stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a connection, or turn it away; nothing can be said to it yet."""
        self._raw = transport
        self._peer = peer_of(get_remote_addr(self._raw))
        if not self._limits.connections.take(self._peer, 1):
            self._raw.abort()
            return
        self._others.add(self)
        self._task = self._loop.create_task(self._shake_hands())

    def data_received(self, data: bytes) -> None:
        """Take what comes before the handshake begins, or with its end."""
        self._early.append(data)

    def eof_received(self) -> None:
        """Take an end that comes with it."""
        self._ended = True

    def connection_lost(self, _: Exception | None) -> None:
        """Take a loss that comes with it."""
        self._lost = True

    def shutdown(self) -> None:
        """End when the handshake is not done soon; what it leads to is answered as others are."""
        self._stopping = True
        self._loop.call_later(self._limits.linger_s, self._give_up)

    def _give_up(self) -> None:
        if self in self._others:
            self._raw.abort()

    async def _shake_hands(self) -> None:
        handshake = self._loop.create_task(
            self._loop.start_tls(
                self._raw,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=self._limits.head_timeout_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        )
        try:
            await asyncio.sleep(0)  # nothing is read any more
            await asyncio.sleep(0)  # TLS is what reads from now on, and has read nothing yet
            self._hand_over()
            transport = await handshake
        except OSError:  # all of ssl, and a timeout
            transport = None
        finally:
            self._others.discard(self)
            self._limits.connections.give_back(self._peer, 1)
        if transport is None or self._lost or self._raw.is_closing():
            self._raw.abort()
        else:
            self._go_on(transport)

    def _hand_over(self) -> None:
        """Give to TLS what was read before it began."""
        tls: Any = self._raw.get_protocol()
        if tls is self:
            return  # TLS did not begin, because the connection was lost
        for data in self._early:
            tls.get_buffer(len(data))[: len(data)] = data
            tls.buffer_updated(len(data))
        self._early.clear()

    def _go_on(self, transport: asyncio.Transport) -> None:
        connection = self._make()
        connection.raw = self._raw
        transport.set_protocol(connection)
        connection.connection_made(transport)
        if self._stopping:
            connection.shutdown()
        for data in self._early:
            connection.data_received(data)
        if self._ended:
            connection.eof_received()
