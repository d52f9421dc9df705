"""LitServe with a model that takes no time, as its documentation begins, for benchmarks/serving.py.

    python benchmarks/serving_litserve.py 8000

It needs LitServe and nothing of this repository, so that it may have an environment of its own.
"""

import sys
from typing import Any

import litserve as ls
import numpy as np

ANSWER = {"label": [0], "adversarial": [False], "abstained": [False]}


class Stub(ls.LitAPI):
    """Answers with the same verdicts; asked in a process of its own."""

    def setup(self, device: str) -> None:
        """Nothing is loaded."""

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        """The pixels of an image."""
        return np.array(request["image"], dtype=np.float32)

    def predict(self, x: np.ndarray) -> dict[str, Any]:
        """Its verdicts."""
        return ANSWER if x.size else {}

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """They are JSON already."""
        return output


if __name__ == "__main__":
    server = ls.LitServer(Stub(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
