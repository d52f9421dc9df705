"""Servers that benchmarks/serving.py measures, each in processes of its own, and what they cost."""

import os
import re
import signal
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import click


@dataclass
class Measured:
    """One server: its process and port, what it is asked, and what each round took, in microseconds a request."""

    process: int
    port: int
    request: bytes
    cpu_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)

    def ask(self, connection: socket.socket) -> None:
        """One request and its whole answer."""
        connection.sendall(self.request)
        answer = b""
        while True:
            received = connection.recv(65536)
            if not received:
                raise click.ClickException("the server closed the connection")
            answer += received
            head, separator, body = answer.partition(b"\r\n\r\n")
            found = re.search(rb"content-length: (\d+)", head) if separator else None
            if found is not None and len(body) >= int(found[1]):
                break
        if not answer.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(f"the server answered {answer[:200]!r}")

    def round(self, requests: int) -> None:
        """Ask so many times."""
        took = []
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.ask(connection)
            before = cpu_ns(self.process)
            for _ in range(requests):
                began = time.perf_counter_ns()
                self.ask(connection)
                took.append(time.perf_counter_ns() - began)
        self.cpu_us.append((cpu_ns(self.process) - before) / requests / 1e3)
        self.wall_us.append(statistics.median(took) / 1e3)


def cpu_ns(process: int) -> int:
    """Time that the threads of a process and of those that it started have run, in nanoseconds."""
    tasks = [task for one in family(process) for task in Path(f"/proc/{one}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def family(process: int) -> list[int]:
    """A process and those that it started, they first."""
    started: dict[int, list[int]] = {}
    for found in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is gone
            parent = int((found / "stat").read_text().rpartition(")")[2].split()[1])
            started.setdefault(parent, []).append(int(found.name))
    return [one for child in started.get(process, []) for one in family(child)] + [process]


@contextmanager
def served(command: Sequence[str | Path], ready: str, request: bytes, port: int | None = None) -> Iterator[Measured]:
    """A server in its own process, once it answers at the path `ready`; without `port` it prints where it listens."""
    said = subprocess.PIPE if port is None else subprocess.DEVNULL  # nobody would read what else it says
    with subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603 - of this folder
        try:
            if port is None:
                port = int(process.stdout.readline()) if process.stdout else 0
            wait_until_ready(port, ready)
            yield Measured(process.pid, port, request)
        finally:
            for one in family(process.pid):
                os.kill(one, signal.SIGTERM)


def wait_until_ready(port: int, path: str) -> None:
    """Wait until a server answers there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            if connection.recv(12) == b"HTTP/1.1 200":
                return
        time.sleep(0.1)
    raise click.ClickException("the server did not start")
