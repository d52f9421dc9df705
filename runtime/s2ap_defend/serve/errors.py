"""The errors of the server: each knows its HTTP status, its extra headers and its name in the metrics.

DefendError
└── RequestError
    ├── ProtocolError         400, 403 or 415   also an InputError: the request is not what the model takes
    ├── UnauthenticatedError  401
    ├── ForbiddenError        403
    ├── UnknownModelError     404
    ├── BodyTimeoutError      408
    ├── TooLargeError         413
    ├── QueueFullError        429
    │   └── RateLimitError
    ├── LoadError             500
    ├── UnavailableError      503
    └── DeadlineError         504
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from s2ap_defend.errors import DefendError, InputError

INVALID = ', error="invalid_token"'  # of RFC 6750, 3.1


class RequestError(DefendError):
    """A request that is not answered with verdicts; the message goes to the client as it is."""

    status: int = 500
    outcome: ClassVar[str] = "error"
    headers: Mapping[str, str] = MappingProxyType({})


class ProtocolError(RequestError, InputError):
    """The request is malformed (400), asks for what is hidden (403) or has an unknown encoding (415)."""

    status = 400
    outcome = "invalid"

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class UnauthenticatedError(RequestError):
    """The request has no key, or one that the server does not know (`invalid`)."""

    status = 401
    outcome = "unauthenticated"

    def __init__(self, message: str, *, invalid: bool = False) -> None:
        super().__init__(message)
        self.headers = {"www-authenticate": f'Bearer realm="s2ap-defend"{INVALID if invalid else ""}'}


class ForbiddenError(RequestError):
    """The key of the request lacks the right to what it asks for."""

    status = 403
    outcome = "forbidden"

    def __init__(self, right: str) -> None:
        super().__init__(f"this key does not have the right {right}; ask the operator for one that has")
        self.headers = {"www-authenticate": f'Bearer realm="s2ap-defend", error="insufficient_scope", scope="{right}"'}


class UnknownModelError(RequestError):
    """The URL names another model or version."""

    status = 404
    outcome = "not_found"


class BodyTimeoutError(RequestError):
    """The body did not arrive in time."""

    status = 408
    outcome = "timeout"
    headers = MappingProxyType({"connection": "close"})


class TooLargeError(RequestError):
    """The request can never be served by this server, however long it waits."""

    status = 413
    outcome = "too_large"


class QueueFullError(RequestError):
    """There is no room in the queue now, or not enough time; `wait_s` are the seconds until what waits is done."""

    status = 429
    outcome = "queue_full"

    def __init__(self, message: str, wait_s: float = 1.0) -> None:
        super().__init__(message)
        self.headers = {"retry-after": str(max(1, math.ceil(wait_s)))}


class RateLimitError(QueueFullError):
    """The caller's key may not ask about so many images yet; `wait_s` are the seconds until it may."""

    outcome = "rate_limited"


class LoadError(RequestError):
    """A model file could not be loaded; whoever asked for it may know why."""


class UnavailableError(RequestError):
    """The model is not ready yet, or the server is stopping."""

    status = 503
    outcome = "unavailable"
    headers = MappingProxyType({"retry-after": "2"})


class DeadlineError(RequestError):
    """The client's own deadline passed before there was an answer."""

    status = 504
    outcome = "deadline"
