"""The real server in its own process."""

import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager


class Server:
    """A running server: its address, its log, and the process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(process.stderr))
        self._reader.start()
        self.address = re.search(r"http://(127\.0\.0\.1:\d+)", self.wait_for("listening on http")).group(1)
        self.wait_for("ready: model")

    def wait_for(self, text: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = next((line for line in list(self.log) if text in line), None)
            if found is not None:
                return found
            assert self._reader.is_alive(), self.log
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} in {self.log}")

    def wait(self) -> int:
        code = self.process.wait(timeout=30)
        self._reader.join()
        return code


@contextmanager
def running(model, *options):
    command = [sys.executable, "-m", "s2ap_defend", "serve", str(model), "--port", "0", "--device", "cpu", *options]
    with subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.kill()
