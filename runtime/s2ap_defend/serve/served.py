"""What a served model takes and gives, and what a request is, however it is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar

from starlette.responses import Response

from s2ap_defend.serve.body import BodyLimits
from s2ap_defend.serve.json_numbers import LARGE_BYTES, NUMBER_BYTES
from s2ap_defend.types import Float32, Verdicts

__all__ = [
    "DATATYPES",
    "DEFAULT_PRIORITY",
    "INPUT",
    "PUBLIC_OUTPUTS",
    "Codec",
    "Head",
    "InferRequest",
    "R",
    "ServedModel",
    "largest_request",
]

INPUT = "image"
DATATYPES = {
    "label": "INT64",
    "adversarial": "BOOL",
    "base_label": "INT64",
    "probabilities": "FP32",
    "label_change_rate": "FP32",
    "log_likelihood_ratio": "FP64",
    "members_used": "INT64",
    "votes": "FP64",
    "purified": "FP32",
    "reconstruction_error": "FP32",
    "abstained": "BOOL",
}
PUBLIC_OUTPUTS = ("label", "adversarial", "abstained")
DEFAULT_PRIORITY = 5


@dataclass(frozen=True)
class ServedModel:
    """What the served model takes and what this server gives.

    Attributes:
        model: Its name.
        shape: (C, H, W) of one image.
        classes: Number of classes.
        outputs: Names of the outputs that clients may see, in the order of the answer.
    """

    model: str
    shape: tuple[int, int, int]
    classes: int
    outputs: tuple[str, ...] = PUBLIC_OUTPUTS
    version: str = "1"

    @cached_property
    def in_binary(self) -> tuple[tuple[str, bool], ...]:
        """All that clients may see, as binary data."""
        return tuple((name, True) for name in self.outputs)

    def shown(self, *, evidence: bool) -> "ServedModel":
        """The model as it is shown to those who may see evidence, or to all others."""
        return replace(self, outputs=Verdicts.FIELDS) if evidence else self


@dataclass(frozen=True)
class InferRequest:
    """One decoded request.

    Attributes:
        images: [N, C, H, W] float32; the values are not checked yet.
        outputs: Wanted outputs, each with whether it is wanted as binary data.
        id: The client's name for the request, which the answer repeats.
        timeout_s: Seconds after which the client does not want the answer any more.
        priority: 1 (first) to 10 (last).
    """

    images: Float32
    outputs: tuple[tuple[str, bool], ...]
    id: str | None = None
    timeout_s: float | None = None
    priority: int = DEFAULT_PRIORITY


def largest_request(served: ServedModel, rows: int) -> int:
    """Bytes that a request for so many images can need: numbers as JSON, and what is around them."""
    return LARGE_BYTES + rows * math.prod(served.shape) * NUMBER_BYTES


R = TypeVar("R", bound=InferRequest)


class Head(NamedTuple):
    """What a codec sees of a request before its body.

    Attributes:
        headers: By lower-case name.
        query: Of the URL.
        evidence: Whether the answer may carry evidence.
    """

    headers: Mapping[bytes, bytes]
    query: str
    evidence: bool = False


class Codec(Protocol[R]):
    """How a kind of request is written; pure functions that raise InputError and RequestError only.

    Attributes:
        inline_bytes: Bodies up to this size are decoded on the event loop, and their answers are encoded there; 0:
            decoding and encoding always go to a thread.
        limits: What a body may cost.
    """

    @property
    def inline_bytes(self) -> int: ...  # noqa: D102

    @property
    def limits(self) -> BodyLimits: ...  # noqa: D102

    def decode(self, body: bytes, head: Head) -> R:
        """Decode an inflated body."""

    def encode(self, request: R, verdicts: Verdicts) -> Response:
        """Encode the answer."""
