"""The server's settings, checked when they are made."""

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from s2ap_defend.engines import Device
from s2ap_defend.errors import RecipeError
from s2ap_defend.executors import ExecutorName
from s2ap_defend.serve.certificate import Certificate
from s2ap_defend.serve.keys import read_keys
from s2ap_defend.serve.logs import LogFormat
from s2ap_defend.types import Resize

MIB = 1024 * 1024
NAME_CHARACTERS = 128
LEAST = {
    **dict.fromkeys(("max_batch_rows", "max_queue_rows", "max_queue_bytes", "max_body_bytes", "body_rate_bytes_s"), 1),
    "max_connections": 2,
}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """How one model file is served, or several.

    Attributes:
        model: The defended model file, whose stem is the model's name in URLs, or several files by their names; the
            first is asked where a request names none.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, which the log names.
        grpc_port: Port of the same address for gRPC, 0 takes a free one; None leaves gRPC out.
        insecure: Allow an address that other machines reach, although the server has no keys or no TLS.
        tls_cert: PEM file of the certificate by which clients know the server, and of its chain; None: no TLS.
        tls_key: PEM file of its private key. Both are read again when they change.
        keys: File of the API keys, which is read again when it changes; None lets anybody ask.
        allowed_hosts: Names or addresses by which clients may ask for the server (the Host header); empty allows any.
        allow_load: Let anybody load and unload models, although the server has no keys.
        expose_evidence: Answer with all outputs, not only `label` and `adversarial`. Evidence is an oracle for
            adaptive attackers.
        on_white: Composite what is transparent in image files on white; otherwise such files are refused.
        resize: How image files of another size are resized, 'trained' as the model file says its training images
            were; None refuses them. Tensors are never resized.
        device: Where the model runs.
        threads: CPU threads, as for `DefendedClassifier.load`; None measures whether one or all cores are faster.
        executor: What runs the model, as there; None takes the faster one.
        engines: Folder of TensorRT's engines, as there.
        constant_time: Whether every stage is asked about every image, as there.
        cache: Whether the staged executor stores the optimised graphs of its stages next to the model, as there.
        max_batch_rows: Images that run at a time; larger requests are split.
        max_queue_rows: Images that may wait.
        max_queue_bytes: Bytes of images that may wait, and, counted apart, of bodies that have arrived in part; a peer
            may have as much of the latter as is left for the others.
        max_body_bytes: Largest request body, both as sent and inflated; tensors may have no more than fill the queue.
        max_connections: Connections at a time; a peer may have as many as are left for the others.
        head_timeout_s: Seconds a client has to send the head of a request, from its first byte, or from connecting.
        body_timeout_s: Seconds a client has to send its body.
        body_rate_bytes_s: Bytes a second that a body must bring after its first five seconds.
        drain_delay_s: Seconds that SIGTERM leaves for load balancers to see that the server is no longer ready.
        grace_s: Seconds that accepted requests have to finish after that.
        log_format: How the log is written: lines of text, or of JSON.
        access_log: Whether every request is logged.
        otel: Whether spans of inference requests are sent over OTLP, as the variables OTEL_* of the environment say.
    """

    model: Path | Mapping[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    insecure: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    keys: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    allow_load: bool = False
    expose_evidence: bool = False
    on_white: bool = False
    resize: Resize | Literal["trained"] | None = None
    device: Device = "auto"
    threads: int | None = None
    executor: ExecutorName | None = None
    cache: bool = False
    engines: Path | None = None
    constant_time: bool = False
    max_batch_rows: int = 32
    max_queue_rows: int = 1024
    max_queue_bytes: int = 512 * MIB
    max_body_bytes: int = 32 * MIB
    max_connections: int = 1024
    head_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    body_rate_bytes_s: int = 8192
    drain_delay_s: float = 5.0
    grace_s: float = 20.0
    log_format: LogFormat = "text"
    access_log: bool = False
    otel: bool = False

    def __post_init__(self) -> None:
        """Check every value, and read what files hold.

        Raises:
            RecipeError: If a value or a file cannot work, or other machines could reach the server and `insecure` is
                not set.
        """
        _check_names(self.models)
        _check_ports(self.port, self.grpc_port)
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise RecipeError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.max_queue_bytes < 2 * self.max_body_bytes:
            raise RecipeError(
                f"max_queue_bytes {self.max_queue_bytes} is less than twice max_body_bytes {self.max_body_bytes}; a "
                "body of that size would never be taken, because a peer may have half of the bytes"
            )
        for host in self.allowed_hosts:
            if not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
                raise RecipeError(
                    f"allowed host {host!r} is no name; give it without a port, IPv6 addresses in brackets"
                )
        known = ("trained", *get_args(Resize))
        if self.resize is not None and self.resize not in known:
            raise RecipeError(f"resize is {self.resize!r}, expected one of {', '.join(known)}")
        if self.max_queue_rows < self.max_batch_rows:
            raise RecipeError(
                f"max_queue_rows {self.max_queue_rows} is less than max_batch_rows {self.max_batch_rows}; "
                "a full batch must fit into the queue"
            )
        for name in ("head_timeout_s", "body_timeout_s", "drain_delay_s", "grace_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise RecipeError(f"{name} is {getattr(self, name)}, expected seconds, 0 or more")
        if self.log_format not in get_args(LogFormat):
            raise RecipeError(f"log_format is {self.log_format!r}, expected one of {', '.join(get_args(LogFormat))}")
        if self.keys is not None:
            read_keys(self.keys)
        self.certificate()
        lacks = self.lacks()
        if lacks and not is_loopback(self.host) and not self.insecure:
            raise RecipeError(
                f"host {self.host} can be reached by other machines and this server has {lacks}; give --keys, "
                "--tls-cert and --tls-key, put a proxy that checks who is asking in front of 127.0.0.1, or accept the "
                "risk with --insecure"
            )

    @property
    def models(self) -> dict[str, Path]:
        """The files by the names of their models."""
        return {self.model.stem: self.model} if isinstance(self.model, Path) else dict(self.model)

    def certificate(self) -> Certificate | None:
        """The certificate, None without TLS.

        Raises:
            RecipeError: If a file is missing, cannot be used, or they do not belong together.
        """
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            there, missing = ("key", "cert") if self.tls_cert is None else ("cert", "key")
            raise RecipeError(f"--tls-{there} needs --tls-{missing}; give both")
        if sys.platform == "win32":
            raise RecipeError("TLS is not offered on Windows; put a proxy that speaks HTTPS in front")
        return Certificate(self.tls_cert, self.tls_key)

    def lacks(self) -> str:
        """What makes it unsafe where other machines reach it, in words; empty if nothing does."""
        missing = {"authentication": self.keys, "encryption": self.tls_cert}
        return " and ".join(f"no {what}" for what, given in missing.items() if given is None)


def _check_names(models: Mapping[str, Path]) -> None:
    if not models:
        raise RecipeError("no model file is given; give one, such as the model.onnx that harden wrote")
    for name in models:
        if not name or "/" in name or len(name) > NAME_CHARACTERS:
            raise RecipeError(
                f"{name[:80]!r} cannot be the name of a model: expected 1 to {NAME_CHARACTERS} characters, no slash "
                "among them; give one as NAME=FILE"
            )


def _check_ports(http: int, grpc: int | None) -> None:
    for port in (http, grpc):
        if port is not None and not 0 <= port <= 65535:
            raise RecipeError(f"port {port} does not exist, expected 0 to 65535")
    if http and http == grpc:
        raise RecipeError(f"port {http} is given for HTTP and for gRPC; choose two")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`: a loopback address or 'localhost'; other names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
