"""The server on Ray Serve: one whole classifier a replica, behind the proxies of a Ray cluster.

s2ap-defend deploy deployment.yaml
serve run s2ap_defend.serve.ray:app model=/models/model.onnx     # Ray's own command
"""

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

try:
    from ray import serve
except ImportError as error:
    from s2ap_defend.errors import RecipeError

    raise RecipeError(f"Ray Serve needs the extra [ray]; pip install '.[ray]' in a checkout ({error})") from error

from fastapi import FastAPI

from s2ap_defend.errors import EngineError, RecipeError
from s2ap_defend.serve.app import create_app
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.threads import load_models

__all__ = ["Autoscaling", "Replica", "Settings", "app"]

logger = logging.getLogger(__name__)

OF_THE_LISTENER = (
    *("model", "host", "port", "grpc_port", "insecure", "tls_cert", "tls_key"),
    *("max_connections", "head_timeout_s", "drain_delay_s", "log_format", "allow_load"),
)
"""Settings of the server that Ray has in its place, and the model, which stands above them."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5.0, 60.0
POLL_S = 0.05


class Autoscaling(BaseModel):
    """How many replicas there are.

    Attributes:
        min_replicas: At least.
        max_replicas: At most.
        target_ongoing_requests: Requests that wait or run, which a replica should have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 4
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class Settings(BaseModel):
    """One deployment.

    Attributes:
        model: The defended model file, which every node must have under this path.
        replicas: How many, or between which numbers Ray decides.
        cpus: Cores that a replica reserves.
        gpus: GPUs that a replica reserves; one process a GPU.
        server: Settings of `ServerConfig` by name, but for those of the listener.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    replicas: Annotated[int, Field(ge=1)] | Autoscaling = 1
    cpus: Annotated[float, Field(gt=0)] = 1.0
    gpus: Literal[0, 1] = 0
    server: Mapping[str, Any] = {}

    @property
    def scale(self) -> str:
        """How many replicas, in words."""
        if isinstance(self.replicas, Autoscaling):
            return f"{self.replicas.min_replicas} to {self.replicas.max_replicas} replicas"
        return f"{self.replicas} replica{'s' * (self.replicas > 1)}"

    def server_config(self) -> ServerConfig:
        """The settings of the server in a replica.

        Raises:
            RecipeError: If one is unknown, of the listener, or cannot work.
        """
        known = {field.name for field in dataclasses.fields(ServerConfig)} - {*OF_THE_LISTENER}
        for name in self.server:
            if name in OF_THE_LISTENER:
                raise RecipeError(f"server.{name} is decided by Ray, not by a replica; leave it out")
            if name not in known:
                raise RecipeError(f"server.{name} is not known; expected one of {', '.join(sorted(known))}")
        try:
            return TypeAdapter(ServerConfig).validate_python({"model": self.model, **self.server})
        except ValidationError as error:
            raise RecipeError(f"server: {_first(error)}") from error

    @classmethod
    def read(cls, values: object) -> Self:
        """Check what a file says.

        Raises:
            RecipeError: If it says something that is unknown, missing, or cannot work.
        """
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            raise RecipeError(_first(error)) from error
        settings.server_config()
        return settings


def _first(error: ValidationError) -> str:
    """The error that says most: where two kinds of values are allowed, not that it is none of the other kind."""
    errors = error.errors()
    found = next((one for one in errors if one["type"] not in {"int_type", "model_type"}), errors[0])
    where = ".".join(str(part) for part in found["loc"] if part not in {"int", "constrained-int", "Autoscaling"})
    return f"{where}: {found['msg']}" if where else str(found["msg"])


@serve.ingress()
class Replica:
    """One server in a process of Ray's: its own classifier, its own batcher.

    Args:
        settings: What is deployed.
        sha256: Of the model file where it was deployed from.

    Raises:
        ModelFileError: If the file is missing, broken or undefended.
        RecipeError: If this node has another file under that path.
        EngineError: If the device cannot be used.
    """

    def __init__(self, settings: Settings, sha256: str) -> None:
        config = settings.server_config()
        found = file_sha256(settings.model)
        if found != sha256:
            raise RecipeError(
                f"{settings.model} has the SHA-256 {found[:12]}... on this node and {sha256[:12]}... where it was "
                "deployed from; give every node the same file"
            )
        self._app = create_app(load_models(config), config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray asks for it once."""
        return self._app

    async def check_health(self) -> None:
        """Raise if the model does not answer; Ray sends no requests before the first answer, and replaces who fails.

        Raises:
            EngineError: If the model failed.
        UnavailableError: If its engine failed and is not started again yet.
        """
        service: Service = self._app.state.service
        while service.state == "starting":
            await asyncio.sleep(POLL_S)
        if service.state == "failed":
            raise service.default.failure or EngineError("the model failed")
        await service.default.instance.probe()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        RecipeError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RecipeError(
            f"cannot read {path}: {error.strerror or error}; every node must have the model file there"
        ) from error


def app(args: Settings) -> serve.Application:
    """The deployment of some settings, for `serve.run`, Ray's command line and the configuration of a RayService.

    Raises:
        RecipeError: If a setting is unknown or cannot work, or the model file cannot be read.
    """
    config = args.server_config()
    scaling: dict[str, Any]
    if isinstance(args.replicas, Autoscaling):
        scaling = {"num_replicas": None, "autoscaling_config": args.replicas.model_dump()}
    else:
        scaling = {"num_replicas": args.replicas}
    deployment = serve.deployment(
        name="DefendedClassifier",
        max_ongoing_requests=4 * config.max_batch_rows,  # a full batch must be under way while the next one forms
        max_queued_requests=config.max_queue_rows,
        graceful_shutdown_timeout_s=config.grace_s,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": args.cpus, "num_gpus": args.gpus},
        **scaling,
    )(Replica)
    return deployment.bind(args, file_sha256(args.model))
