"""When a connection is read: uvicorn's, but that it can be held for longer than one request wants."""

import asyncio
import fcntl
import sys
import termios

from uvicorn.protocols.http.flow_control import FlowControl

__all__ = ["Flow", "unread_bytes"]


class Flow(FlowControl):
    """Reads nothing while it is held, whatever requests want that have come already."""

    _held = False

    def hold(self) -> None:
        """Read nothing from now on."""
        self._held = True
        self.pause_reading()

    def release(self) -> None:
        """Read again."""
        self._held = False
        self.resume_reading()

    def resume_reading(self) -> None:
        """Read again, unless it is held."""
        if not self._held:
            super().resume_reading()


def unread_bytes(transport: asyncio.Transport) -> int:
    """Bytes that have arrived and were not read yet."""
    count = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder)
