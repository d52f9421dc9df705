"""Run the application: listen, warm up, serve, drain, stop."""

import asyncio
import logging
import math
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import Context
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from s2ap_defend.errors import EngineError, RecipeError
from s2ap_defend.serve import extras
from s2ap_defend.serve.app import create_app
from s2ap_defend.serve.certificate import Certificate
from s2ap_defend.serve.config import ServerConfig, is_loopback
from s2ap_defend.serve.edge import Application
from s2ap_defend.serve.handshakes import ignore_handshakes
from s2ap_defend.serve.logs import written_log
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import Limits, Shares
from s2ap_defend.serve.threads import load_models
from s2ap_defend.signals import SIGNALS, has_terminal

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
SWITCH_INTERVAL_S = 0.0005
HANDSHAKE_S = 0.1  # what has begun to connect when the server stops gets to its end


def serve(config: ServerConfig) -> None:
    """Serve model files until SIGTERM or SIGINT; returns after a clean stop.

    On SIGTERM or SIGQUIT the server is no longer ready, serves on for `drain_delay_s`, stops accepting, and gives what
    it has accepted `grace_s` to finish. SIGINT, and a second signal, skip the delay; a third skips the grace. SIGHUP
    means SIGTERM where it was started from a terminal, which is gone then; elsewhere keys, certificate and the model
    files that have changed are read again. SIGUSR1 logs what the server is doing.

    Raises:
        RecipeError: If the address cannot be listened on.
        ModelFileError: If a model file cannot be used.
        EngineError: If the device cannot be used, or a model fails when it is warmed up.
    """
    if config.grpc_port is not None:
        extras.grpc_server()
    if config.otel:
        extras.tracing()
    with written_log(config.log_format) as log, listen(config.host, config.port) as listener:
        classifiers = load_models(config)
        app = create_app(classifiers, config)
        service: Service = app.state.service
        if log is not None:
            log.on_drop = service.metrics.count_dropped
        url, first = _url(listener, service.certificate), next(iter(classifiers.values()))
        logger.info("listening on %s (%s, %s)", url, first.provider, first.executor.name)
        if len(classifiers) > 1:
            logger.info("models: %s; the first is asked where a request names none", ", ".join(classifiers))
        del classifiers, first  # one that is replaced must not live on here
        if service.certificate is not None:
            service.certificate.log()
        if not is_loopback(config.host):
            if config.lacks():
                logger.warning("other machines can reach this server and it has %s", config.lacks())
            if not config.allowed_hosts:
                logger.warning(
                    "it answers for any host name, so pages of others may ask it; --allow-host names its own"
                )
        if config.expose_evidence:
            logger.warning("answers carry evidence, which is an oracle for adaptive attackers")
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)  # the event loop must not wait 5 ms for a decoding thread
        try:
            Server(app, service, config).run(sockets=[listener])
        except SystemExit as error:
            raise EngineError("the application did not start; the log says why") from error
        finally:
            sys.setswitchinterval(interval)
        if service.failure is not None:
            raise service.failure
        logger.info("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket.

    Raises:
        RecipeError: If the address is taken, not of this machine, or needs rights that this process lacks.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        in_use = error.errno is not None and "in use" in (error.strerror or "")
        advice = "stop the other server or choose another --port" if in_use else "choose another --host or --port"
        raise RecipeError(f"cannot listen on {host} port {port}: {error.strerror or error}; {advice}") from error


class Server(uvicorn.Server):
    """uvicorn with our way to stop; it alone would refuse connections the moment a signal arrives.

    Args:
        app: The application.
        service: What it serves.
        config: Its settings.
    """

    def __init__(self, app: Application, service: Service, config: ServerConfig) -> None:
        self._limits = Limits(Shares(config.max_connections), config.head_timeout_s, app.access_log)
        self.grpc = (
            None if config.grpc_port is None else extras.grpc_server().GrpcServer(service, config, app.access_log)
        )
        self._refused: RecipeError | None = None
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio" if sys.platform == "win32" else "uvloop",
                http=_protocol(self._limits, service.certificate),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # the application asks for them where a request has them
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(config.grace_s) + 1,  # after ours, which answers with 503
            )
        )
        app.behind_proxy = ProxyHeadersMiddleware(_nothing, self.config.forwarded_allow_ips)
        self._service = service
        self._drain_delay_s = config.drain_delay_s
        self._grace_s = config.grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._has_terminal = has_terminal()
        service.on_failure = self._stop

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal; see uvicorn.Server."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._refused is not None:
            raise self._refused

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start what listens; see uvicorn.Server."""
        await super().startup(sockets)
        if self.grpc is not None and not self.should_exit:
            try:
                await self.grpc.start()
            except RecipeError as error:
                self._refused, self.should_exit, self.grpc = error, True, None
                return
            logger.info("gRPC on port %d", self.grpc.port)

    def stop(self) -> None:
        """Stop as SIGINT does; from any thread. Nothing happens where it does not serve."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._stop)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while it serves."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.signal(number, self.handle_exit) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, but take what has connected already, and stop; see uvicorn.Server."""
        for listener in sockets or []:
            ignore_handshakes(listener)
        await asyncio.sleep(HANDSHAKE_S)
        for listener in sockets or []:
            await self._accept_last(listener)
        if self.grpc is not None:
            await self.grpc.stop(self._grace_s + 1)  # after ours, which answers with UNAVAILABLE
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    async def _accept_last(self, listener: socket.socket) -> None:
        """Take the connections that the system has accepted; closing the socket would reset them."""
        loop = asyncio.get_running_loop()
        with listener.dup() as last:
            for server in self.servers:
                server.close()
            listener.close()
            await asyncio.sleep(0)  # the loop lets go of the socket
            last.setblocking(False)
            while True:
                try:
                    connection, _ = last.accept()
                except OSError:
                    return
                await loop.connect_accepted_socket(self._new_protocol, connection)

    def _new_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Take a signal; called by Python between two instructions of the main thread, whatever request it is at."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._on_signal, sig, context=Context())

    def _on_signal(self, sig: int) -> None:
        name = signal.Signals(sig).name
        if name == "SIGUSR1":
            logger.info("%s; %d connections", self._service.describe(), len(self.server_state.connections))
            return
        if name == "SIGHUP" and not self._has_terminal:
            self._service.watcher.read_now()
            self._service.load_changed()
            logger.info("SIGHUP: keys, certificate and changed model files are read again; for settings start again")
            return
        self._signals += 1
        if self._signals > 2:
            logger.warning("giving up what is unfinished")
            self._service.abort()
            for task in self.server_state.tasks:
                task.cancel()
            self.force_exit = True
        elif self._signals > 1 or sig == signal.SIGINT or self._drain_delay_s == 0:
            self._stop()
        else:
            logger.info("draining: not ready any more, stopping in %g s", self._drain_delay_s)
            self._drain()
            asyncio.get_running_loop().call_later(self._drain_delay_s, self._stop)

    def _stop(self) -> None:
        if not self.should_exit:
            logger.info("stopping: accepted requests have %g s to finish", self._grace_s)
            self._drain()
            self.should_exit = True
            asyncio.get_running_loop().call_later(self._grace_s, self._service.abort)

    def _drain(self) -> None:
        """Let every answer end its connection from now on, so that clients go elsewhere in time."""
        self._service.drain()
        self._limits.draining = True
        for connection in self.server_state.connections:
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False


def _protocol(limits: Limits, certificate: Certificate | None) -> Any:  # noqa: ANN401 - a name or a class, uvicorn's type wants no partial one
    """How uvicorn speaks HTTP; httptools, and with it our limits on connections, are not there on Windows."""
    if sys.platform == "win32":
        return "h11"
    from s2ap_defend.serve.connection import Connection

    if certificate is None:
        return partial(Connection, limits=limits)
    from s2ap_defend.serve.entrance import Entrance

    return partial(Entrance, limits=limits, certificate=certificate)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - uvicorn's
    """What is behind the middleware that reads a proxy's headers: it puts into the scope what they say."""


def _url(listener: socket.socket, certificate: Certificate | None) -> str:
    scheme = "http" if certificate is None else "https"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
