"""The two ways to write an inference request over HTTP: the protocol's, and just the bytes of an image file."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from starlette.responses import Response

from s2ap_defend.images import READ, read
from s2ap_defend.serve.endpoint import Headers
from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.protocol import InferRequest, ServedModel, decode_header_length, decode_request, encode_response
from s2ap_defend.serve.responses import JSON, json_response
from s2ap_defend.types import Float32, Resize, Verdicts

HEADER_LENGTH = "inference-header-content-length"
IMAGE_TYPES = (
    *("image/png", "image/jpeg", "image/webp", "image/bmp"),
    *("application/octet-stream", "application/x-www-form-urlencoded"),
)


class ProtocolCodec:
    """Open Inference Protocol v2."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served

    def decode(self, body: bytes, headers: Headers) -> InferRequest:
        """Decode a request; see `protocol.decode_request`."""
        length = headers.get(HEADER_LENGTH.encode())
        return decode_request(
            body, decode_header_length(None if length is None else length.decode("latin-1")), self._served
        )

    def encode(self, request: InferRequest, verdicts: Verdicts) -> Response:
        """Encode an answer; see `protocol.encode_response`."""
        body, header_length = encode_response(request, verdicts, self._served)
        if header_length is None:
            return Response(body, media_type=JSON)
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header_length)})


class ImageFileCodec:
    """The bytes of one image file, answered in plain JSON with class names.

    Args:
        served: The model.
        classes: Class names by label.
        on_white: Whether what is transparent is composited on white.
        resize: How images of another size are resized; None refuses them.
    """

    def __init__(
        self, served: ServedModel, classes: tuple[str, ...], *, on_white: bool = False, resize: Resize | None = None
    ) -> None:
        self._served = served
        self._classes = classes
        self._on_white = on_white
        self._resize = resize

    def decode(self, body: bytes, headers: Headers) -> InferRequest:
        """Decode an image file.

        Raises:
            ProtocolError: If the Content-Type is that of something else; curl's default passes.
            InputError: If the bytes are no image of the model's size.
        """
        content_type = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if content_type and content_type not in IMAGE_TYPES:
            raise ProtocolError(
                f"Content-Type {content_type[:60]!r} is not that of an image; send the bytes of one {READ} file",
                status=415,
            )
        image = read(body, self._served.shape, on_white=self._on_white, resize=self._resize, name="the file")
        return InferRequest(images=image[None], outputs=())

    def encode(self, request: InferRequest, verdicts: Verdicts) -> Response:
        """Encode the verdict on one image, and the evidence if this server exposes it."""
        label = int(verdicts.label[0])
        answer: dict[str, Any] = {
            "label": label,
            "class": self._classes[label],
            "adversarial": bool(verdicts.adversarial[0]),
            "abstained": bool(verdicts.abstained[0]),
        }
        if "base_label" in self._served.outputs:
            base_label = int(verdicts.base_label[0])
            answer["evidence"] = {
                "base_label": base_label,
                "base_class": self._classes[base_label],
                "probabilities": verdicts.probabilities[0],
                "label_change_rate": float(verdicts.label_change_rate[0]),
                "log_likelihood_ratio": float(verdicts.log_likelihood_ratio[0]),
                "members_used": int(verdicts.members_used[0]),
                "votes": verdicts.votes[0],
                "reconstruction_error": float(verdicts.reconstruction_error[0]),
                "image": _data_url(request.images[0]),
                "purified": _data_url(verdicts.purified[0]),
            }
        return json_response(answer)


def _data_url(image: Float32) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def encode_png(image: Float32) -> bytes:
    """Encode one image [C, H, W] in [0, 1] with 1 or 3 channels, rounded to 8 bits."""
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)  # [H, W, C]
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()
