"""The protocol's way to write an inference request over HTTP."""

from starlette.responses import Response

from s2ap_defend.serve.body import BodyLimits
from s2ap_defend.serve.protocol import decode_header_length, decode_request, encode_response
from s2ap_defend.serve.responses import JSON, Encoded
from s2ap_defend.serve.served import Head, InferRequest, ServedModel
from s2ap_defend.types import Verdicts

HEADER_LENGTH = b"inference-header-content-length"
TENSORS, JSON_BYTES = b"application/octet-stream", JSON.encode()


class ProtocolCodec:
    """Open Inference Protocol v2."""

    inline_bytes = 64 * 1024

    def __init__(self, served: ServedModel, limits: BodyLimits) -> None:
        self.limits = limits
        self._served = served
        self._in_full = served.shown(evidence=True)

    def decode(self, body: bytes, head: Head) -> InferRequest:
        """Decode a request; see `protocol.decode_request`."""
        length = head.headers.get(HEADER_LENGTH)
        served = self._in_full if head.evidence else self._served
        return decode_request(body, decode_header_length(None if length is None else length.decode("latin-1")), served)

    def encode(self, request: InferRequest, verdicts: Verdicts) -> Response:
        """Encode an answer; see `protocol.encode_response`."""
        body, header_length = encode_response(request, verdicts, self._served)
        if header_length is None:
            return Encoded(body, JSON_BYTES)
        return Encoded(body, TENSORS, (HEADER_LENGTH, b"%d" % header_length))
