"""`s2ap-defend serve`: the inference server."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from s2ap_defend.commands.options import (
    NamedModelPath,
    device_option,
    executor_option,
    named_models,
    on_white_option,
    resize_option,
)
from s2ap_defend.commands.settings import config_option, print_settings
from s2ap_defend.engines import Device
from s2ap_defend.executors import ExecutorName
from s2ap_defend.signals import requests_ignored
from s2ap_defend.types import Resize

if TYPE_CHECKING:
    from s2ap_defend.serve.logs import LogFormat


@click.command(context_settings={"auto_envvar_prefix": "S2AP_DEFEND_SERVE"})
@click.argument("model", type=NamedModelPath(), nargs=-1, required=True, envvar="S2AP_DEFEND_SERVE_MODEL")
@config_option
@click.option(
    "--print-config", is_flag=True, help="Print the settings that there are, and where each is from, and stop."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 takes a free one.")
@click.option("--grpc-port", type=int, help="Serve gRPC on this port as well; 0 takes a free one. Extra [grpc].")
@click.option("--insecure", is_flag=True, help="Allow an address that other machines reach, without keys or TLS.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Speak TLS with this certificate and its chain, PEM.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The certificate's private key, PEM.")
@click.option("--keys", type=click.Path(path_type=Path), help="Let only these API keys ask, of serve-key; a TOML file.")
@click.option("--allow-host", multiple=True, help="Answer only for this name in the Host header; may be repeated.")
@click.option("--allow-load", is_flag=True, help="Let anybody load and unload models, where there are no --keys.")
@click.option("--expose-evidence", is_flag=True, help="Answer with votes, evidence and the purified image as well.")
@on_white_option
@resize_option
@device_option
@click.option(
    "--threads", type=click.IntRange(1), help="CPU threads; one or all cores without it, whichever is faster."
)
@executor_option
@click.option("--constant-time", is_flag=True, help="Ask all members about every image: time tells nothing of it.")
@click.option("--cache", is_flag=True, help="Keep optimised graphs of the stages next to the model: it starts faster.")
@click.option(
    "--engines",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Of --device tensorrt: where export --tensorrt wrote; MODEL.tensorrt without it.",
)
@click.option("--max-batch-rows", default=32, show_default=True, help="Images that run at a time.")
@click.option("--max-queue-rows", default=1024, show_default=True, help="Images that may wait; more get 429.")
@click.option("--max-connections", default=1024, show_default=True, help="Connections at a time; more get 503.")
@click.option("--drain-delay", default=5.0, show_default=True, help="Seconds between SIGTERM and the last accept.")
@click.option("--grace", default=20.0, show_default=True, help="Seconds that accepted requests have to finish.")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How the log is written.",
)
@click.option("--access-log", is_flag=True, help="Log every request, with its id, status and time.")
@click.option(
    "--otel", is_flag=True, help="Send spans of requests over OTLP, as OTEL_* in the environment says. [otel]."
)
@requests_ignored()  # also while the server is imported, which takes a second
def serve(
    model: tuple[str, ...],
    print_config: bool,
    host: str,
    port: int,
    grpc_port: int | None,
    insecure: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    keys: Path | None,
    allow_host: tuple[str, ...],
    allow_load: bool,
    expose_evidence: bool,
    on_white: bool,
    resize: Resize | Literal["trained"] | None,
    device: Device,
    threads: int | None,
    executor: ExecutorName | None,
    constant_time: bool,
    cache: bool,
    engines: Path | None,
    max_batch_rows: int,
    max_queue_rows: int,
    max_connections: int,
    drain_delay: float,
    grace: float,
    log_format: "LogFormat",
    access_log: bool,
    otel: bool,
) -> None:
    """Serve model files: Open Inference Protocol v2 over HTTP and gRPC, a page at /, metrics at /metrics.

    Several are served under the names of their files, or as NAME=FILE; the first is asked where nobody names one.

    What no flag says may be in the environment (S2AP_DEFEND_SERVE_MAX_BATCH_ROWS), or in the file of --config.
    """
    from s2ap_defend.serve.config import ServerConfig
    from s2ap_defend.serve.server import serve as run_server

    config = ServerConfig(
        model=named_models(model),
        host=host,
        port=port,
        grpc_port=grpc_port,
        insecure=insecure,
        tls_cert=tls_cert,
        tls_key=tls_key,
        keys=keys,
        allowed_hosts=allow_host,
        allow_load=allow_load,
        expose_evidence=expose_evidence,
        on_white=on_white,
        resize=resize,
        device=device,
        threads=threads,
        executor=executor,
        constant_time=constant_time,
        cache=cache,
        engines=engines,
        max_batch_rows=max_batch_rows,
        max_queue_rows=max_queue_rows,
        max_connections=max_connections,
        drain_delay_s=drain_delay,
        grace_s=grace,
        log_format=log_format,
        access_log=access_log,
        otel=otel,
    )
    if print_config:
        print_settings(click.get_current_context())
    else:
        run_server(config)
