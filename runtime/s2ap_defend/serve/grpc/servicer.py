"""The calls of inference.GRPCInferenceService, on the batcher that answers HTTP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from s2ap_defend import __version__
from s2ap_defend.errors import DefendError
from s2ap_defend.serve import metadata
from s2ap_defend.serve.access import CALLER
from s2ap_defend.serve.body import FULL
from s2ap_defend.serve.errors import DeadlineError, QueueFullError, UnavailableError
from s2ap_defend.serve.exchange import EXCHANGE
from s2ap_defend.serve.grpc.gate import BLAMED, abort, code_of, peer_name
from s2ap_defend.serve.grpc.messages import decode_message, encode_message
from s2ap_defend.serve.instance import Instance
from s2ap_defend.serve.metrics import CANCELLED, ERROR, SUCCESS
from s2ap_defend.serve.model import Model
from s2ap_defend.serve.repository import check_load, describe_repository
from s2ap_defend.serve.responses import explain, outcome_of
from s2ap_defend.serve.served import InferRequest, ServedModel
from s2ap_defend.serve.service import Service
from s2ap_defend.serve.timeline import Timeline
from s2ap_defend.types import Verdicts

logger = logging.getLogger(__name__)

SPAN = "inference.GRPCInferenceService/ModelInfer"
INLINE_BYTES = 64 * 1024  # larger messages are decoded on a thread
MISSING = {
    "System": "shared memory is not supported; send the tensor in the message",
    "Cuda": "shared memory is not supported; send the tensor in the message",
    "Trace": "there are no settings for tracing",
    "Log": "the log has no settings that a client may change",
}


class InferenceServicer:
    """GRPCInferenceService of one Service.

    Args:
        service: What serves the requests.
        decoders: Threads for large messages.

    Attributes:
        busy: Inference requests that are not answered yet.
    """

    def __init__(self, service: Service, decoders: ThreadPoolExecutor) -> None:
        self._service = service
        self._decoders = decoders
        self.busy = 0
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if not hasattr(self, method.name):
                setattr(self, method.name, _refuse(method.name))

    async def ServerLive(self, *_: object) -> Message:  # noqa: N802 - names of the protocol, here and below
        """Whether the process runs and can serve again by itself."""
        return _filled(pb.ServerLiveResponse(), {"live": _holds(self._service.check_live)})

    async def ServerReady(self, *_: object) -> Message:  # noqa: N802
        """Whether new requests should be sent here."""
        return _filled(pb.ServerReadyResponse(), {"ready": _holds(self._service.check_ready)})

    async def ModelReady(self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext) -> Message:  # noqa: N802
        """Whether the model takes requests."""
        model = await self._named(request, context)
        return _filled(pb.ModelReadyResponse(), {"ready": _holds(model.check_ready) and not self._service.draining})

    async def ServerMetadata(self, *_: object) -> Message:  # noqa: N802
        """The server and its extensions of the protocol."""
        return _filled(pb.ServerMetadataResponse(), metadata.describe_server(__version__))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext) -> Message:  # noqa: N802
        """Inputs and outputs of the model."""
        model = await self._named(request, context)
        return _filled(
            pb.ModelMetadataResponse(), metadata.describe_model(model.served.shown(evidence=CALLER.get().evidence))
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: grpc.aio.ServicerContext) -> Message:  # noqa: N802
        """Configuration of the model."""
        model = await self._named(request, context)
        served = model.served.shown(evidence=CALLER.get().evidence)
        found = metadata.configure_model(served, model.manifest.classes, self._service.config.max_batch_rows)
        return _filled(pb.ModelConfigResponse(), {"config": found})

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: grpc.aio.ServicerContext) -> Message:  # noqa: N802
        """Statistics of the model, or of all when no name is given."""
        models = [await self._named(request, context)] if request.name else self._service.models.values()
        found = [model.counts.to_json(model.name, model.served.version) for model in models]
        return _filled(pb.ModelStatisticsResponse(), {"model_stats": found})

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, _: object) -> Message:  # noqa: N802
        """The models and their states."""
        found = describe_repository(self._service, ready=request.ready)
        return _filled(pb.RepositoryIndexResponse(), {"models": found})

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: grpc.aio.ServicerContext
    ) -> Message:
        """Load the model's file again."""
        try:
            self._service.check_control()
            model = self._service.model(request.model_name)
            check_load(dict(request.parameters))
            await model.load()
        except DefendError as error:
            await abort(error, context)
        return _filled(pb.RepositoryModelLoadResponse(), {})

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: grpc.aio.ServicerContext
    ) -> Message:
        """Unload the model."""
        try:
            self._service.check_control()
            await self._service.model(request.model_name).unload()
        except DefendError as error:
            await abort(error, context)
        return _filled(pb.RepositoryModelUnloadResponse(), {})

    async def ModelInfer(self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Message:  # noqa: N802
        """Verdicts."""
        try:
            return await self._infer(request, context)
        except DefendError as error:
            await abort(error, context)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Message]:
        """Verdicts for one request after the other; an error is the answer to its request and the stream goes on."""
        async for request in requests:
            try:
                yield pb.ModelStreamInferResponse(infer_response=await self._infer(request, context))
            except DefendError as error:
                failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield pb.ModelStreamInferResponse(error_message=explain(error)[1], infer_response=failed)

    async def _infer(self, message: pb.ModelInferRequest, context: grpc.aio.ServicerContext) -> Message:
        arrived_s, timeline, tracer = asyncio.get_running_loop().time(), Timeline(), self._service.tracer
        span = None if tracer is None else tracer.begin(EXCHANGE.get(), SPAN, timeline, {"rpc.system": "grpc"})
        left_s = context.time_remaining()
        outcome, model, verdicts, code = ERROR, None, None, grpc.StatusCode.UNKNOWN
        self.busy += 1
        try:
            model = self._service.model(message.model_name, message.model_version or None)
            with model.use() as instance:
                answer, verdicts = await self._answer(
                    instance, message, arrived_s, left_s, peer_name(context), timeline
                )
            outcome, code = SUCCESS, grpc.StatusCode.OK
        except asyncio.CancelledError:
            late = left_s is not None and asyncio.get_running_loop().time() >= arrived_s + left_s
            outcome = DeadlineError.outcome if late else CANCELLED
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except DefendError as error:
            outcome, code = outcome_of(error), code_of(error)
            if explain(error)[0] == 500:
                logger.error("a request failed: %s", error)
            raise
        finally:
            self.busy -= 1
            duration_ns = time.perf_counter_ns() - timeline.arrived_ns
            (model or self._service.default).counts.count_request(outcome, duration_ns, "grpc", verdicts)
            if tracer is not None and span is not None:
                about = {} if model is None else {"s2ap.model": model.name}
                about["rpc.grpc.status_code"] = code.value[0]
                tracer.end(span, timeline, about, outcome if code in BLAMED else None)
        return answer

    async def _answer(
        self,
        instance: Instance,
        message: pb.ModelInferRequest,
        arrived_s: float,
        left_s: float | None,
        peer: str,
        timeline: Timeline,
    ) -> tuple[Message, Verdicts]:
        service, loop = self._service, asyncio.get_running_loop()
        if service.draining:
            raise UnavailableError("the server is stopping")
        caller = CALLER.get()
        service.access.confirm(caller)  # a stream may be older than the keys
        caller.check(1)
        served = instance.served.shown(evidence=caller.evidence)
        with service.receiving.hold(peer) as hold:
            size = message.ByteSize()
            if not hold.add(size):
                raise QueueFullError(FULL)
            began_ns = time.perf_counter_ns()
            if size <= INLINE_BYTES:
                request = _decode(instance, message, served)
            else:
                request = await loop.run_in_executor(self._decoders, _decode, instance, message, served)
            timeline.decode_ns = began_ns, time.perf_counter_ns()
            timeline.ticket = ticket = instance.enqueue(request, caller, arrived_s, left_s)
        try:
            verdicts = await ticket.future
        finally:
            instance.batcher.release(ticket)
        return encode_message(request, verdicts, served), verdicts

    async def _named(self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext) -> Model:
        try:
            return self._service.model(request.name, request.version or None)
        except DefendError as error:
            await abort(error, context)


def _decode(instance: Instance, message: pb.ModelInferRequest, served: ServedModel) -> InferRequest:
    request = decode_message(message, served)
    instance.classifier.validate(request.images)  # alone, before it shares a batch
    return request


def _holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except DefendError:
        return False
    return True


def _refuse(method: str) -> Callable[[object, grpc.aio.ServicerContext], Any]:
    reason = next(reason for start, reason in MISSING.items() if method.startswith(start))

    async def refuse(_: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not offered: {reason}")

    return refuse


def _filled(message: Message, fields: dict[str, Any]) -> Message:
    return ParseDict(fields, message, ignore_unknown_fields=True)  # `drift` is of HTTP's statistics only
