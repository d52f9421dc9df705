"""A listening socket that takes no further connection, and resets none that it has taken."""

import errno
import select
import socket
import sys

import pytest

from s2ap_defend.serve.handshakes import ignore_handshakes
from s2ap_defend.serve.server import listen

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="filters of sockets are Linux's")


def test_who_connects_later_is_not_taken_and_hears_that_nobody_listens():
    with listen("127.0.0.1", 0) as listener, socket.socket() as before, socket.socket() as after:
        before.connect(listener.getsockname())
        ignore_handshakes(listener)
        after.setblocking(False)
        after.connect_ex(listener.getsockname())
        listener.settimeout(10)
        accepted, peer = listener.accept()
        with accepted:
            assert peer == before.getsockname()
            before.sendall(b"asked")
            assert accepted.recv(5) == b"asked"
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
        listener.close()
        assert select.select([], [after], [], 10)[1] == [after]
        assert after.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
