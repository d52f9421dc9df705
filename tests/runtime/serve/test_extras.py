"""What needs an extra says so where it is not installed."""

import sys

import pytest

from s2ap_defend.errors import RecipeError
from s2ap_defend.serve import extras


@pytest.mark.parametrize(
    ("load", "library", "modules", "said"),
    [
        (extras.grpc_server, "grpc", ("server", "gate", "servicer", "messages"), "gRPC needs the extra [grpc]"),
        (extras.tracing, "opentelemetry.sdk.resources", (), "OpenTelemetry needs the extra [otel]"),
    ],
)
def test_without_the_extra_its_name_is_said(monkeypatch, load, library, modules, said):
    monkeypatch.setitem(sys.modules, library, None)
    for name in ("tracing", *(f"grpc.{module}" for module in modules)):
        monkeypatch.delitem(sys.modules, f"s2ap_defend.serve.{name}", raising=False)
    with pytest.raises(RecipeError) as raised:
        load()
    extra = said.rpartition(" ")[2]
    assert str(raised.value).startswith(f"{said}; pip install '.{extra}' in a checkout")
