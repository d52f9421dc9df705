"""What holds for every route: whom it answers, under which names, HEAD as GET, security headers on every answer."""

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from s2ap_defend.serve.access import CALLER, Access, http_need, presented
from s2ap_defend.serve.errors import RequestError
from s2ap_defend.serve.responses import error_response, json_response

__all__ = ["Application"]

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Application(FastAPI):
    """FastAPI behind what holds for every route.

    Attributes:
        allowed_hosts: Names by which clients may ask for it, in lower case; empty allows any. What health checks ask is
            answered under any name.
        access: Who may ask what.
    """

    access: Access
    allowed_hosts: frozenset[str] = frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return

        expects = any(name == b"expect" for name, _ in scope["headers"])

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure(message)
                if message["status"] >= 400 and expects:  # its body may never be sent, so the connection cannot go on
                    MutableHeaders(raw=message["headers"])["connection"] = "close"
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send_secured)
            return
        if scope["method"] == "HEAD":  # the server leaves out the body
            scope = {**scope, "method": "GET"}
        await super().__call__(scope, receive, send_secured)

    def _refusal(self, scope: Scope) -> Response | None:
        if self.allowed_hosts and not scope["path"].startswith("/v2/health/"):
            host = host_name(Headers(scope=scope).get("host", ""))
            if host not in self.allowed_hosts:
                reason = f"this server does not answer for the host {host[:80]!r}, which no --allow-host names"
                return json_response({"error": reason}, status=421)
        try:
            CALLER.set(self.access.admit(presented(scope["headers"]), http_need(scope["path"])))
        except RequestError as error:
            return error_response(error)
        if b"%2f" in (scope.get("raw_path") or b"").lower():
            return json_response({"error": "no name here has a slash in it, so %2F is in no path"}, status=404)
        return None


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in lower case."""
    name = header.strip().lower()
    return name[: name.find("]") + 1] if name.startswith("[") else name.partition(":")[0]


def secure(message: Message) -> None:
    """Add the security headers to the head of an answer, where it has none of its own."""
    headers = MutableHeaders(raw=message["headers"])
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    allowed = headers.get("allow")
    if allowed is not None and "GET" in allowed:
        headers["allow"] = f"{allowed}, HEAD"
