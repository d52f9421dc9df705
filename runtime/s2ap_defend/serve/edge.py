"""What holds for every route: HEAD answers as GET does, and security headers are on every answer."""

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

__all__ = ["Application"]

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Application(FastAPI):
    """FastAPI behind what holds for every route."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                secure(message)
            await send(message)

        if scope["method"] == "HEAD":  # the server leaves out the body
            scope = {**scope, "method": "GET"}
        await super().__call__(scope, receive, send_secured)


def secure(message: Message) -> None:
    """Add the security headers to the head of an answer, where it has none of its own."""
    headers = MutableHeaders(raw=message["headers"])
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    allowed = headers.get("allow")
    if allowed is not None and "GET" in allowed:
        headers["allow"] = f"{allowed}, HEAD"
