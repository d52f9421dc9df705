"""Image files over HTTP: one as it is, several as a form or in JSON, answered in plain JSON with class names."""

import base64
import io
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, get_args

import numpy as np
from PIL import Image
from starlette.responses import Response

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images import MAX_PIXELS, READ, chosen_resize, fitted, open_picture
from s2ap_defend.serve.body import BodyLimits
from s2ap_defend.serve.errors import ProtocolError, TooLargeError
from s2ap_defend.serve.json_strings import LongStrings
from s2ap_defend.serve.multipart import form_parts
from s2ap_defend.serve.protocol import decode_scheduling
from s2ap_defend.serve.responses import JSON, json_response
from s2ap_defend.serve.served import Head, InferRequest, ServedModel
from s2ap_defend.types import Float32, Resize, Verdicts

__all__ = ["FORM", "IMAGE_TYPES", "ImagesCodec", "ImagesRequest", "encode_png"]

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "application/octet-stream")
FORM = "multipart/form-data"
CURLS_DEFAULT = "application/x-www-form-urlencoded"
PARAMETERS = ("timeout", "priority", "resize")
MOST_PIXELS = 4 * MAX_PIXELS  # of the files of one request, before they are resized
NAME_CHARACTERS = 255
NUMBER_DIGITS = 15


@dataclass(frozen=True)
class ImagesRequest(InferRequest):
    """The files of one request that could be read, as rows of `images`.

    Attributes:
        files: Of every file its name and, where it could not be read, why; else None.
        evidence: Whether the answer carries evidence.
    """

    files: tuple[tuple[str, str | None], ...] = field(kw_only=True)
    evidence: bool = False


class _File(NamedTuple):
    name: str
    content: Callable[[], bytes]  # raises InputError


class ImagesCodec:
    """Image files, read by the project's decoder.

    Args:
        served: The model.
        classes: Class names by label.
        limits: What a body may cost.
        most_images: Images that a request may have.
        on_white: Whether what is transparent is composited on white.
        resize: How images of another size are resized where the request does not say; None refuses them.
        trained: How the training images were resized, if the model file says it.
    """

    inline_bytes = 0  # a file of a few kilobytes can have millions of pixels

    def __init__(
        self,
        served: ServedModel,
        classes: tuple[str, ...],
        limits: BodyLimits,
        *,
        most_images: int,
        on_white: bool = False,
        resize: Resize | None = None,
        trained: Resize | None = None,
    ) -> None:
        self.limits = limits
        self._served = served
        self._classes = classes
        self._most_images = most_images
        self._on_white = on_white
        self._resize = resize
        self._trained = trained

    def decode(self, body: bytes, head: Head) -> ImagesRequest:
        """Decode the files of a request.

        Raises:
            ProtocolError: If the Content-Type, the form, the JSON or a parameter is wrong, or no file can be read.
            TooLargeError: If there are more images or pixels than one request may have.
        """
        parameters = _query(head.query)
        files = self._files(body, head.headers.get(b"content-type", b"").decode("latin-1"), parameters)
        timeout_s, priority = decode_scheduling(parameters)
        images, read = self._read(files, self._resize_of(parameters))
        return ImagesRequest(
            images=images, outputs=(), timeout_s=timeout_s, priority=priority, files=read, evidence=head.evidence
        )

    def encode(self, request: ImagesRequest, verdicts: Verdicts) -> Response:
        """Encode what became of every file, in their order, and the evidence if the caller may see it."""
        rows = iter(range(len(verdicts)))
        answers = [
            {"name": name, **(self._verdict(request, verdicts, next(rows)) if why is None else {"error": why})}
            for name, why in request.files
        ]
        return json_response({"images": answers})

    def _files(self, body: bytes, content_type: str, parameters: dict[str, Any]) -> list[_File]:
        """The files of a body, none of them read yet; parameters in JSON are added to `parameters`."""
        kind = content_type.partition(";")[0].strip().lower()
        files: Iterator[_File]
        if kind == FORM:
            files = (
                _File(name, lambda start=start, stop=stop: body[start:stop])  # type: ignore[misc]
                for name, start, stop in form_parts(body, content_type)
            )
        elif kind == JSON:
            files = _json_files(body, parameters)
        elif kind in {"", CURLS_DEFAULT, *IMAGE_TYPES}:
            files = iter([_File("", lambda: body)])
        else:
            raise ProtocolError(
                f"Content-Type {kind[:60]!r} is not taken; send the bytes of one {READ} file, or several as {FORM} or "
                "as base64 in JSON",
                status=415,
            )
        found: list[_File] = []
        for name, content in files:
            if len(found) == self._most_images:
                raise TooLargeError(f"the request has more than {self._most_images} images; send fewer at a time")
            if len(name) > NAME_CHARACTERS:
                raise ProtocolError(f"the name of image {len(found) + 1} has over {NAME_CHARACTERS} characters")
            found.append(_File(name or f"image {len(found) + 1}", content))
        if not found:
            raise ProtocolError("the request has no images; send at least one")
        return found

    def _read(self, files: list[_File], resize: Resize | None) -> tuple[Float32, tuple[tuple[str, str | None], ...]]:
        images = np.empty((len(files), *self._served.shape), dtype=np.float32)
        read: list[tuple[str, str | None]] = []
        rows = pixels = 0
        for name, content in files:
            try:
                picture = open_picture(content(), name)
                pixels += picture.width * picture.height
                if pixels > MOST_PIXELS:
                    raise TooLargeError(f"the images have over {MOST_PIXELS} pixels in all; send fewer at a time")
                images[rows] = fitted(picture, self._served.shape, on_white=self._on_white, resize=resize)
            except InputError as error:
                read.append((name, str(error)))
            else:
                read.append((name, None))
                rows += 1
        if not rows:
            many = f"none of the {len(read)} images can be read; the first: " if len(read) > 1 else ""
            raise ProtocolError(f"{many}{read[0][1]}")
        return images[:rows], tuple(read)

    def _resize_of(self, parameters: dict[str, Any]) -> Resize | None:
        if "resize" not in parameters:
            return self._resize
        known = ("trained", *get_args(Resize))
        if parameters["resize"] not in known:
            raise ProtocolError(f"parameter resize must be one of {', '.join(known)}")
        try:
            return chosen_resize(parameters["resize"], self._trained)
        except RecipeError as error:
            raise ProtocolError(str(error)) from error

    def _verdict(self, request: ImagesRequest, verdicts: Verdicts, row: int) -> dict[str, Any]:
        label = int(verdicts.label[row])
        answer: dict[str, Any] = {
            "label": label,
            "class": self._classes[label],
            "adversarial": bool(verdicts.adversarial[row]),
            "abstained": bool(verdicts.abstained[row]),
        }
        if request.evidence:
            base_label = int(verdicts.base_label[row])
            answer["evidence"] = {
                "base_label": base_label,
                "base_class": self._classes[base_label],
                "probabilities": verdicts.probabilities[row],
                "label_change_rate": float(verdicts.label_change_rate[row]),
                "log_likelihood_ratio": float(verdicts.log_likelihood_ratio[row]),
                "members_used": int(verdicts.members_used[row]),
                "votes": verdicts.votes[row],
                "reconstruction_error": float(verdicts.reconstruction_error[row]),
                "image": _data_url(request.images[row]),
                "purified": _data_url(verdicts.purified[row]),
            }
        return answer


def encode_png(image: Float32) -> bytes:
    """Encode one image [C, H, W] in [0, 1] with 1 or 3 channels, rounded to 8 bits."""
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8).transpose(1, 2, 0)  # [H, W, C]
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _data_url(image: Float32) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_png(image)).decode()


def _query(text: str) -> dict[str, Any]:
    """Parameters of a query, numbers as numbers."""
    try:
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, max_num_fields=1 + len(PARAMETERS))
    except ValueError as error:
        raise ProtocolError(f"the query has more parameters than model, {', '.join(PARAMETERS)}") from error
    if len(dict(pairs)) < len(pairs):
        raise ProtocolError("the query has a parameter twice")
    return _known({name: int(value) if _is_number(value) else value for name, value in pairs if name != "model"})


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS


def _known(parameters: dict[str, Any]) -> dict[str, Any]:
    unknown = next((name for name in parameters if name not in PARAMETERS), None)
    if unknown is not None:
        raise ProtocolError(f"there is no parameter {unknown[:40]!r}; choose from {', '.join(PARAMETERS)}")
    return parameters


def _json_files(body: bytes, parameters: dict[str, Any]) -> Iterator[_File]:
    """The files of {"images": [{"name": ..., "b64": ...}], "parameters": {...}}; parameters go into `parameters`."""
    strings = LongStrings(body)
    request = strings.parsed
    if not isinstance(request, dict) or not isinstance(request.get("images"), list):
        raise ProtocolError('the request must be a JSON object with a list: {"images": [{"name": ..., "b64": ...}]}')
    given = request.get("parameters", {})
    if not isinstance(given, dict):
        raise ProtocolError("parameters must be a JSON object")
    parameters.update(_known(given))
    for number, image in enumerate(request["images"], 1):
        name = image.get("name", "") if isinstance(image, dict) else None
        text = image.get("b64") if isinstance(image, dict) else None
        if not isinstance(name, str) or not isinstance(text, str) or name.startswith("\0"):
            raise ProtocolError(
                f"image {number} must be an object with a short string name and, as b64, the file in base64"
            )
        yield _File(name, lambda text=text: strings.decode(text))  # type: ignore[misc]
