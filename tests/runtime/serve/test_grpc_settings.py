"""What keeps gRPC from being served."""

from pathlib import Path

import pytest

from s2ap_defend import RecipeError
from s2ap_defend.serve import ServerConfig


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 8123, "grpc_port": 8123}, "port 8123 is given for HTTP and for gRPC; choose two"),
        ({"grpc_port": 70000}, "port 70000 does not exist"),
        ({"grpc_port": 0, "host": "0.0.0.0"}, "has no authentication"),  # noqa: S104 - refused
    ],
)
def test_ports_that_cannot_be_served_are_refused(changes, said):
    with pytest.raises(RecipeError, match=said):
        ServerConfig(model=Path("model.onnx"), **changes)
