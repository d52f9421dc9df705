"""Listen for gRPC on the event loop that serves HTTP, say whether the model is ready, and stop."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc

from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.access_log import AccessLog
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.grpc.gate import Gate
from s2ap_defend.serve.grpc.servicer import INLINE_BYTES, InferenceServicer
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.shares import Shares

DECODER_THREADS = 2
LINGER_S = 1.0  # for answers under way, and before streams that nobody uses are ended
POLL_S = 0.01
KEEP_ALIVE_S = 75.0
HANDSHAKE_MS = ("grpc.server_handshake_timeout_ms", "grpc.http2.settings_timeout")


class GrpcServer:
    """Serves one Service over gRPC.

    Args:
        service: What it serves.
        config: Where it listens, and its limits.
        access_log: Where calls are logged, None for nowhere.

    Attributes:
        port: Where it listens, once it has started.
        gate: What every call goes through.
    """

    def __init__(self, service: Service, config: ServerConfig, access_log: AccessLog | None = None) -> None:
        self.port = 0
        self._service = service
        self._config = config
        self._decoders = ThreadPoolExecutor(DECODER_THREADS, thread_name_prefix="s2ap-grpc")
        self._servicer = InferenceServicer(service, self._decoders)
        self.gate = Gate(service.access, Shares(config.max_connections), config.body_timeout_s, access_log)
        self._health = health.aio.HealthServicer()
        self._telling: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        Raises:
            RecipeError: If the port cannot be listened on.
        """
        config = self._config
        pixels = max(math.prod(model.served.shape) for model in self._service.models.values())
        size_bytes = min(config.max_body_bytes, INLINE_BYTES + config.max_queue_rows * 4 * pixels)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                ("grpc.max_concurrent_streams", max(1, config.max_connections // 2)),
                ("grpc.max_allowed_incoming_connections", config.max_connections),
                *((name, math.ceil(1000 * config.head_timeout_s)) for name in HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", int(1000 * KEEP_ALIVE_S)),
                ("grpc.keepalive_time_ms", int(1000 * KEEP_ALIVE_S)),  # of clients that are gone without a word
            ],
            interceptors=[self.gate],
            maximum_concurrent_rpcs=config.max_connections,
        )
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        host = f"[{config.host}]" if ":" in config.host else config.host
        try:
            self.port = self._open(f"{host}:{config.grpc_port}")
        except RuntimeError as error:
            raise RecipeError(
                f"cannot listen on {config.host} port {config.grpc_port} for gRPC; choose another --grpc-port"
            ) from error
        await self._tell()
        self._service.on_state.append(self._state_changed)
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, answer the inference requests that came before, and end the rest."""
        ending = asyncio.ensure_future(self._server.stop(grace_s))
        while self._servicer.busy and not ending.done():
            await asyncio.sleep(POLL_S)
        await self._server.stop(LINGER_S)
        await ending
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def _open(self, address: str) -> int:
        certificate = self._service.certificate
        if certificate is None:
            return int(self._server.add_insecure_port(address))

        used = certificate.pem
        first = grpc.ssl_server_certificate_configuration([used])

        def renew() -> grpc.ServerCertificateConfiguration | None:  # at every handshake
            nonlocal used
            if used == certificate.pem:
                return None
            used = certificate.pem
            return grpc.ssl_server_certificate_configuration([used])

        credentials = grpc.dynamic_ssl_server_credentials(first, renew)
        return int(self._server.add_secure_port(address, credentials))

    def _state_changed(self) -> None:
        task = asyncio.get_running_loop().create_task(self._tell())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        service, statuses = self._service, health_pb2.HealthCheckResponse
        ready = dict.fromkeys(("", "inference.GRPCInferenceService"), service.state == "ready")
        ready |= {name: service.takes(model) for name, model in service.models.items()}
        for name, serving in ready.items():
            await self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)
