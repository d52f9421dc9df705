"""What every route has in common: it is described, its errors are {"error"}, its answers carry security headers."""

import json

import httpx
import pytest
from tests.runtime.serve.live import live, read_answer

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
SECURITY = ("content-security-policy", "cross-origin-resource-policy", "referrer-policy", "x-content-type-options")


@pytest.fixture(scope="module")
def server(classifier):
    with live(classifier) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def described(client):
    return client.get("/openapi.json").json()


def test_every_described_path_answers_as_described(client, described, server, classifier):
    model = server.service.default.served.model
    for path, item in described["paths"].items():
        for names in ({"model": model, "version": "1"}, {"model": "other", "version": "1"}):
            for method, operation in item.items():
                accepts = [None] if path != "/metrics" else ["text/plain", "application/openmetrics-text"]
                for accept in accepts:
                    headers = {} if accept is None else {"accept": accept}
                    response = client.request(method, path.format(**names), headers=headers)
                    found = operation["responses"].get(str(response.status_code))
                    assert found is not None, (path, response.status_code)
                    assert response.headers["content-type"].partition(";")[0] in found["content"], path
                    assert accept is None or response.headers["content-type"].startswith(accept)
                    assert "{model}" not in path or names["model"] == model or response.status_code == 404


def test_the_description_has_no_parameter_that_does_nothing_and_no_error_but_ours(described):
    text = json.dumps(described)
    assert "422" not in text
    assert "HTTPValidationError" not in text
    for path, item in described["paths"].items():
        for operation in item.values():
            named = {parameter["name"] for parameter in operation.get("parameters", ())}
            in_path = {name for name in ("model", "version") if f"{{{name}}}" in path}
            assert named == ({"model", "timeout", "priority", "resize"} if path == "/classify" else in_path)
            for status, response in operation["responses"].items():
                if status != "200":
                    assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Error"}


def test_query_parameters_change_nothing(client, server):
    path = f"/v2/models/{server.service.default.served.model}"
    for query in ("?version=2", "?model=other", "?version=1&version=2&x=%2F", "?"):
        for suffix in ("", "/ready", "/config"):
            assert client.get(path + suffix + query).json() == client.get(path + suffix).json()


@pytest.mark.parametrize(
    "path",
    ["/v2%2Fhealth%2Flive", "/v2/models/a%2fb", "/v2/models/%2e%2e%2fstats", "//v2", "/v2/models//ready", "/%00"],
)
def test_odd_paths_lead_nowhere(server, path):
    with server.connect() as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, _, body = read_answer(connection)
        assert (status, list(json.loads(body))) == (404, ["error"])


@pytest.mark.parametrize("path", ["/", "/v2", "/metrics", "/classify", "/page.js", "/none", "/v2/models/a%2Fb"])
def test_every_answer_has_security_headers_and_every_error_is_one_object(client, path):
    for method in METHODS:
        response = client.request(method, path)
        assert not [name for name in SECURITY if name not in response.headers], (method, path)
        if response.status_code >= 400 and method != "HEAD":
            assert list(response.json()) == ["error"]


def test_a_server_with_names_answers_for_them_and_to_health_checks_only(classifier, batch):
    with live(classifier, allowed_hosts=("Example.org", "[::1]", "10.0.0.7")) as server:

        def ask(host: str, path: str) -> tuple[int, dict]:
            with server.connect() as connection:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                status, _, body = read_answer(connection)
                return status, json.loads(body)

        for host in ("example.org", "EXAMPLE.org:8000", "[::1]:80", "10.0.0.7:1"):
            assert ask(host, "/v2")[0] == 200
        for host in ("evil.example", "example.org.evil.example", "127.0.0.1", "[::2]", ""):
            status, answer = ask(host, "/v2")
            assert status == 421
            assert answer["error"].startswith(f"this server does not answer for the host '{host.partition(']')[0]}")
            assert ask(host, "/v2/health/ready")[0] == 200
