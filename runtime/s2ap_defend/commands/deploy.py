"""`s2ap-defend deploy`: the server on Ray Serve."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from s2ap_defend.errors import EngineError, RecipeError

if TYPE_CHECKING:
    from s2ap_defend.serve.ray import Settings


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--address",
    help="Of a running Ray cluster ('auto' finds one here); without it one is started and ends with this command.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that Ray's proxies listen on.")
@click.option("--port", default=8000, show_default=True, help="Port that Ray's proxies listen on.")
@click.option("--insecure", is_flag=True, help="Allow an address that other machines reach, without authentication.")
@click.option("--dry-run", is_flag=True, help="Check the file and say what would be deployed.")
def deploy(file: Path, address: str | None, host: str, port: int, insecure: bool, dry_run: bool) -> None:
    """Serve a model file on Ray Serve, by a YAML file: model, replicas, cpus, gpus, server."""
    from s2ap_defend.model_file import open_model_file
    from s2ap_defend.serve.config import ServerConfig
    from s2ap_defend.serve.ray import Settings, file_sha256

    settings = Settings.read(_read(file))
    if not settings.model.is_absolute():
        settings = settings.model_copy(update={"model": (file.parent / settings.model).resolve()})
    ServerConfig(model=settings.model, host=host, port=port, insecure=insecure)  # the rules of `serve` for addresses
    open_model_file(settings.model)
    click.echo(f"{settings.model} ({file_sha256(settings.model)[:12]}...): {settings.scale}")
    if not dry_run:
        _run(settings, address, host, port)


def _read(file: Path) -> object:
    import yaml

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read {file}: {error.strerror or error}; docs/deployment.md shows one") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{file} is no YAML file: {' '.join(str(error).split())}") from error


def _run(settings: "Settings", address: str | None, host: str, port: int) -> None:
    """Deploy, say where, and, where the cluster ends with this command, wait for Ctrl+C."""
    import ray
    from ray import serve

    from s2ap_defend.serve.ray import app

    try:
        ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RecipeError(
            f"no Ray cluster answers at {address}: {_line(error)}; start one with `ray start --head`"
        ) from error
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(app(settings), name=settings.model.stem)
        click.echo(f"ready at http://{host}:{port}")
        while address is None:
            time.sleep(1)
    except RuntimeError as error:
        raise EngineError(f"the deployment failed: {_line(error)}; the logs of Ray say more") from error
    finally:
        if address is None:
            serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def _line(error: Exception) -> str:
    """The last line of an error, which is what went wrong; those before are of Ray's processes."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
