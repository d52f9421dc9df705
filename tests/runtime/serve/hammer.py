"""Clients that ask without end, until the server stops."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

from tests.runtime.serve.live import read_answer, until


class Hammer:
    """A client that asks on and on, on a connection that it keeps as long as the server lets it."""

    def __init__(self, server, request: bytes, pause_s: float) -> None:
        self.answered = self.lost = 0
        self._server, self._request, self._pause_s = server, request, pause_s

    def run(self) -> None:
        """Until nobody listens any more."""
        while True:
            try:
                connection = self._server.connect()
            except OSError:
                return
            with connection:
                if not self._ask_on(connection):
                    return

    def _ask_on(self, connection: socket.socket) -> bool:
        """Ask until the server ends the connection with an answer; False if it ends without."""
        while True:
            try:
                connection.sendall(self._request)
                status, headers, _ = read_answer(connection)
            except (OSError, EOFError):
                self.lost += 1
                return False
            assert status == 200
            self.answered += 1
            if headers.get("connection") == "close":
                return True
            time.sleep(self._pause_s)


def assert_none_is_lost_when_it_stops(server, request: bytes, clients: int) -> None:
    """Let clients hammer on a server that gets SIGTERM; none may lose a request."""
    with ThreadPoolExecutor(clients) as pool:
        hammers = [Hammer(server, request, 0.001 * number) for number in range(clients)]
        running = [pool.submit(hammer.run) for hammer in hammers]
        until(lambda: sum(hammer.answered for hammer in hammers) > 8 * clients)
        server.server.handle_exit(signal.SIGTERM, None)
        for one in running:
            one.result(timeout=30)
    assert all(hammer.answered for hammer in hammers)
    assert sum(hammer.lost for hammer in hammers) == 0
