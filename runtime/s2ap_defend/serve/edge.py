"""What holds for every route: whom it answers, under which names, HEAD as GET, headers on every answer, its record."""

import logging
import re
import time
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2ap_defend.serve.access import CALLER, Access, http_need, presented
from s2ap_defend.serve.access_log import AccessLog
from s2ap_defend.serve.errors import RequestError
from s2ap_defend.serve.exchange import EXCHANGE, NAMING, Exchange, named
from s2ap_defend.serve.responses import error_response, failed_response, json_response

__all__ = ["HEADERS", "Application"]

logger = logging.getLogger(__name__)

SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)
SECURED = frozenset(name for name, _ in SECURITY_HEADERS)
FORWARDED = frozenset({b"x-forwarded-for", b"x-forwarded-proto"})
HEADERS = "s2ap_defend.headers"  # in a scope: its headers by name
INFER = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class Application(FastAPI):
    """FastAPI behind what holds for every route; inference does not pass through it.

    Attributes:
        behind_proxy: What puts into a scope what a proxy says of its client, None for nothing.
        allowed_hosts: Names by which clients may ask for it, in lower case; empty allows any. What health checks ask is
            answered under any name.
        access: Who may ask what.
        access_log: Where requests are logged, None for nowhere.
        infer: What answers inference requests of the protocol.
        classify: What answers those of image files.
    """

    access: Access
    infer: ASGIApp
    classify: ASGIApp
    access_log: AccessLog | None = None
    allowed_hosts: frozenset[str] = frozenset()
    behind_proxy: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        began_s = time.perf_counter()
        headers = scope["headers"]
        scope[HEADERS] = by_name = dict(headers)
        if not FORWARDED.isdisjoint(by_name) and self.behind_proxy is not None:
            await self.behind_proxy(scope, receive, send)
        exchange = Exchange() if NAMING.isdisjoint(by_name) else named(headers)
        EXCHANGE.set(exchange)
        status: int | None = None

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                finish(message, exchange)
                if status >= 400 and b"expect" in by_name:
                    # the body of such a request may never be sent, so the connection cannot go on
                    MutableHeaders(raw=message["headers"])["connection"] = "close"
            await send(message)

        try:
            answer = self._refusal(scope, exchange) or self._direct(scope)
            if answer is not None:
                await answer(scope, receive, send_on)
            else:
                if scope["method"] == "HEAD":  # the server leaves out the body
                    scope = {**scope, "method": "GET"}
                await super().__call__(scope, receive, send_on)
        except Exception:
            if status is not None:
                raise
            logger.exception("a request failed")
            await failed_response()(scope, receive, send_on)
        finally:
            if self.access_log is not None:
                client = scope.get("client")
                self.access_log.http(
                    exchange,
                    client[0] if client else None,
                    scope["method"],
                    scope.get("raw_path") or scope["path"].encode(),
                    status,
                    time.perf_counter() - began_s,
                )

    def _direct(self, scope: Scope) -> ASGIApp | None:
        """What answers an inference request, whose path has a model and a version then; None for other requests."""
        if scope["method"] != "POST":
            return None
        path = scope["path"]
        if path == "/classify":
            return self.classify
        found = INFER.fullmatch(path)
        if found is None:
            return None
        scope["path_params"] = {"model": found[1], "version": found[2]}
        return self.infer

    def _refusal(self, scope: Scope, exchange: Exchange) -> Response | None:
        headers, path = scope["headers"], scope["path"]
        if self.allowed_hosts and not path.startswith("/v2/health/"):
            host = host_name(next((value for name, value in headers if name == b"host"), b"").decode("latin-1"))
            if host not in self.allowed_hosts:
                reason = f"this server does not answer for the host {host[:80]!r}, which no --allow-host names"
                return json_response({"error": reason}, status=421)
        try:
            caller = self.access.anybody or self.access.admit(presented(headers), http_need(path))
        except RequestError as error:
            return error_response(error)
        CALLER.set(caller)
        if caller.key is not None:
            exchange.key = caller.key.name
        if b"%2f" in (scope.get("raw_path") or b"").lower():
            return json_response({"error": "no name here has a slash in it, so %2F is in no path"}, status=404)
        return None


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    name = header.strip().lower()
    return name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]


def finish(message: Message, exchange: Exchange) -> None:
    """Add to the head of an answer the id of its request, and the security headers that it has not of its own."""
    headers = message["headers"]
    present = {name for name, _ in headers}
    headers.append((b"x-request-id", exchange.id.encode()))
    if present.isdisjoint(SECURED):
        headers.extend(SECURITY_HEADERS)
    else:
        headers.extend(header for header in SECURITY_HEADERS if header[0] not in present)
    if b"allow" in present:
        allow = MutableHeaders(raw=headers)
        if "GET" in allow["allow"]:
            allow["allow"] += ", HEAD"
