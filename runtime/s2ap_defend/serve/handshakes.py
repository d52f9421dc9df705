"""How a listening socket takes no further connection without losing one that a client believes to have."""

import ctypes
import socket
import struct
import sys
from contextlib import suppress

SO_ATTACH_FILTER = 26
# Classic BPF, which sees a segment from its TCP header on: drop it if of SYN and ACK it has SYN alone.
DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def ignore_handshakes(listener: socket.socket) -> None:
    """Let a listening TCP socket ignore clients that begin to connect from now on.

    The system connects clients before anybody accepts them, and resets those that nobody has accepted when the socket
    is closed. A client that is ignored asks again a second later, and learns that nobody listens. Handshakes that have
    begun are finished. Linux only, and only where the system allows filters; elsewhere it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in DROP_SYN))
    program = struct.pack("HP", len(DROP_SYN), ctypes.addressof(instructions))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
