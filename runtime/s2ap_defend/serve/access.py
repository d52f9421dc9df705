"""Who may ask what: every request has a caller, whose key has the right to it, over HTTP and gRPC alike."""

import hmac
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, NamedTuple

from s2ap_defend.serve.allowance import Allowance
from s2ap_defend.serve.errors import ForbiddenError, UnauthenticatedError
from s2ap_defend.serve.keys import Key, Right, hash_key
from s2ap_defend.serve.page import PAGE_FILES

__all__ = ["CALLER", "Access", "Caller", "Need", "grpc_need", "http_need", "presented"]

Need = Right | Literal["open", "any"]
"""What a route asks for: a right, any key at all, or nothing."""

OPEN_PATHS = frozenset({"/", "/docs", *(f"/{name}" for name in PAGE_FILES)})  # the same in every installation
INFERENCE_CALLS = frozenset({"ModelInfer", "ModelStreamInfer"})
OPEN_CALLS = frozenset({"ServerLive", "ServerReady"})
ANY_KEY_CALLS = frozenset({"ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex"})


def http_need(path: str) -> Need:
    """What a path asks for; what is not known here needs a key, too."""
    if path in OPEN_PATHS or path.startswith("/v2/health/"):
        return "open"
    if path == "/classify" or path.endswith("/infer"):
        return "infer"
    if path == "/metrics" or path.endswith("/stats") or path.startswith("/v2/repository/models/"):
        return "admin"
    return "any"


def grpc_need(method: str) -> Need:
    """What a call asks for, by its full name; what is not known here is the operator's."""
    service, _, name = method.lstrip("/").partition("/")
    if service == "grpc.health.v1.Health" or name in OPEN_CALLS:
        return "open"
    if name in INFERENCE_CALLS:
        return "infer"
    return "any" if name in ANY_KEY_CALLS else "admin"


def presented(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The keys that a request carries, in `Authorization: Bearer` and `X-API-Key`; names are in lower case."""
    found = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.add(key.strip())
    return frozenset(found)


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        evidence: Whether its answers may carry evidence.
        key: Its key, None where the server has no keys, and for what is open.
        allowance: How many images it may ask about, None for any number.
    """

    evidence: bool
    key: Key | None = None
    allowance: Allowance | None = None

    def check(self, images: int) -> None:
        """Check that it may ask about so many images now.

        Raises:
            TooLargeError: If it never may.
            RateLimitError: If it may later.
        """
        if self.allowance is not None:
            self.allowance.check(images)

    def charge(self, images: int) -> None:
        """Charge it for a request that was checked and accepted."""
        if self.allowance is not None:
            self.allowance.take(images)


CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who asks what this task answers; set before a route or a call is looked at."""


class _Entry(NamedTuple):
    key: Key
    caller: Caller


class Access:
    """Tells callers by their keys.

    Args:
        keys: The keys that there are; None: nobody needs one.
        evidence: Whether everybody who gets verdicts sees evidence.
        on_denied: Called with the outcome of what is denied.
    """

    def __init__(self, keys: tuple[Key, ...] | None, *, evidence: bool, on_denied: Callable[[str], None]) -> None:
        self._evidence = evidence
        self._on_denied = on_denied
        self._anybody = Caller(evidence)
        self._entries: tuple[_Entry, ...] | None = None
        if keys is not None:
            self.replace(keys)

    @property
    def anybody(self) -> Caller | None:
        """Who asks, where nobody needs a key; None where the server has keys."""
        return self._anybody if self._entries is None else None

    def replace(self, keys: tuple[Key, ...]) -> None:
        """Use other keys from now on; from any thread. Those that stay as they were have used what they have used."""
        before = {entry.key: entry for entry in self._entries or ()}
        self._entries = tuple(before.get(key) or self._enter(key) for key in keys)

    def admit(self, tokens: frozenset[bytes], need: Need) -> Caller:
        """The caller that presents these keys.

        Raises:
            UnauthenticatedError: If it needs a key and presents none, several, or one that is not known.
            ForbiddenError: If its key lacks the right.
        """
        if self._entries is None or need == "open":
            return self._anybody
        try:
            caller = self._find(self._entries, tokens)
            if need != "any" and (caller.key is None or need not in caller.key.rights):
                raise ForbiddenError(need)
        except (UnauthenticatedError, ForbiddenError) as error:
            self._on_denied(error.outcome)
            raise
        return caller

    def confirm(self, caller: Caller) -> None:
        """Check that a caller that was admitted earlier, at the start of a stream, would still be.

        Raises:
            UnauthenticatedError: If its key was removed or changed.
        """
        if self._entries is not None and all(entry.caller is not caller for entry in self._entries):
            self._on_denied(UnauthenticatedError.outcome)
            raise UnauthenticatedError("the key of this stream was removed or changed; open another one", invalid=True)

    def _find(self, entries: tuple[_Entry, ...], tokens: frozenset[bytes]) -> Caller:
        if not tokens:
            raise UnauthenticatedError("this needs a key; send it as Authorization: Bearer KEY, or as X-API-Key: KEY")
        if len(tokens) > 1:
            raise UnauthenticatedError("the request has more than one key; send one", invalid=True)
        (token,) = tokens
        digest = hash_key(token)
        found: Caller | None = None
        for entry in entries:  # to the end, so that the time does not tell which it is
            if hmac.compare_digest(entry.key.sha256, digest):
                found = entry.caller
        if found is None:
            raise UnauthenticatedError("this key is not known here; ask the operator for one", invalid=True)
        return found

    def _enter(self, key: Key) -> _Entry:
        limited = key.images_per_second is not None and key.burst is not None
        allowance = Allowance(key.images_per_second, key.burst) if limited else None  # type: ignore[arg-type]
        return _Entry(key, Caller(self._evidence or "evidence" in key.rights, key, allowance))
