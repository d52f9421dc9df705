"""The access log: one record for every request, whatever became of it."""

import logging
from typing import Any

from s2ap_defend.serve.exchange import Exchange

__all__ = ["AccessLog"]

logger = logging.getLogger(__name__)

PATH_CHARACTERS = 300
TEXT = '%s "%s %s" %s %.1f ms'


class AccessLog:
    """Logs requests when they are over.

    A record's `fields` are those of a line of JSON. Its path has no query, which may hold what is no one's business.
    """

    def http(
        self, exchange: Exchange, peer: str | None, method: str, path: bytes, status: int | None, seconds: float
    ) -> None:
        """Log a request over HTTP; a `status` of None: its client went before there was an answer."""
        self._log("http", exchange, peer, method, path.decode("ascii", "backslashreplace"), status, seconds)

    def grpc(self, exchange: Exchange, peer: str, path: str, code: str, seconds: float) -> None:
        """Log a call over gRPC, a whole stream as one; `code` is the name of its status."""
        self._log("grpc", exchange, peer, "POST", path, code, seconds)

    def _log(
        self,
        protocol: str,
        exchange: Exchange,
        peer: str | None,
        method: str,
        path: str,
        status: int | str | None,
        seconds: float,
    ) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        path = path[:PATH_CHARACTERS]
        fields: dict[str, Any] = {
            "message": "request",
            "protocol": protocol,
            "peer": peer,
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": round(1000 * seconds, 3),
            "trace_id": exchange.trace_id,
            "key": exchange.key,
        }
        shown = "-" if status is None else status
        values = (peer or "-", method, path, shown, 1000 * seconds)
        record = logging.LogRecord(__name__, logging.INFO, __file__, 0, TEXT, values, None)  # nobody asks which line
        record.fields, record.request_id = fields, exchange.id
        logger.handle(record)
