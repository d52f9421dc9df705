"""Who may ask what over HTTP: the real server with keys, asked by httpx, curl and tritonclient."""

import json
import logging
import subprocess
import threading
import time

import httpx
import numpy as np
import pytest
from tests.runtime.serve.key_files import Ring
from tests.runtime.serve.live import live, read_answer, until
from tests.runtime.serving_client import serving
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from s2ap_defend.serve import watched
from s2ap_defend.serve.access import http_need
from s2ap_defend.serve.classify import encode_png
from s2ap_defend.types import Verdicts

PUBLIC = ["label", "adversarial", "abstained"]
OPEN = ("/", "/docs", "/page.css", "/page.js", "/page-evidence.js", "/v2/health/live", "/v2/health/ready")
ANY = ("/v2", "/openapi.json", "/page.json", "/v2/models/{0}", "/v2/models/{0}/ready", "/v2/models/{0}/config")
ADMIN = ("/metrics", "/v2/models/stats", "/v2/models/{0}/stats", "/v2/models/{0}/versions/1/stats")
INFER = ("/classify", "/v2/models/{0}/infer", "/v2/models/{0}/versions/1/infer")


INDEX = ("/v2/repository/index",)
CONTROL = ("/v2/repository/models/{0}/load", "/v2/repository/models/{0}/unload")
ROUTES = {"open": OPEN, "any": (*ANY, *INDEX), "admin": (*ADMIN, *CONTROL), "infer": INFER}


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    ring = Ring(tmp_path_factory.mktemp("keys"))
    ring.add("slow", "infer", images_per_second=0.001, burst=4)
    return ring


@pytest.fixture(scope="module")
def server(classifier, ring):
    with live(classifier, keys=ring.path) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url) as client:
        yield client


def ask(client, server, headers, images):
    body = {"inputs": [{"name": "image", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}]}
    return client.post(server.infer, json=body, headers=headers)


def test_every_route_asks_for_its_right_and_for_nothing_more(client, ring, name):
    expected = {
        **{path: {"asker": 200, "operator": 200, None: 200} for path in OPEN},
        **{path: {"asker": 200, "operator": 200, None: 401} for path in ANY},
        **{path: {"asker": 403, "operator": 200, None: 401} for path in ADMIN},
        **{path: {"asker": 405, "operator": 403, None: 401} for path in INFER},
        **{path: {"asker": 405, None: 401} for path in INDEX},
        **{path: {"asker": 403, "operator": 405, None: 401} for path in CONTROL},
        **{path: {"asker": 404, None: 401} for path in ("/none", "/v2/models/a%2Fb")},
    }
    for path, statuses in expected.items():
        for caller, status in statuses.items():
            for method in ("GET", "HEAD"):
                response = client.request(method, path.format(name), headers=ring.bearer(caller))
                assert response.status_code == status, (path, caller, response.text)


def test_models_are_loaded_and_unloaded_by_keys_with_the_right_to_it_alone(client, ring, name):
    for what in ("unload", "load"):
        for caller, status in ((None, 401), ("asker", 403), ("operator", 200)):
            path = f"/v2/repository/models/{name}/{what}"
            assert client.post(path, headers=ring.bearer(caller)).status_code == status


def test_the_list_above_has_every_route_that_is_described(classifier, ring):
    listed = {path: need for need, paths in ROUTES.items() for path in paths}
    with serving(classifier, keys=ring.path) as client:
        described = client.get("/openapi.json", headers=ring.bearer("asker")).json()["paths"]
        found = {path.replace("{model}", "{0}").replace("{version}", "1") for path in described}
    versions = {path.replace("/{0}", "/{0}/versions/1", 1) for path in listed if "{0}/" in path or path.endswith("{0}")}
    assert found <= {*listed, *versions}
    assert {path: http_need(path) for path in listed} == listed


def test_what_is_missing_is_said_as_the_standard_wants(client, server, ring, batch):
    def answer(headers, path="/metrics"):
        response = client.get(path, headers=headers)
        return response.status_code, response.headers["www-authenticate"], response.json()["error"]

    realm = 'Bearer realm="s2ap-defend"'
    assert answer({}) == (401, realm, "this needs a key; send it as Authorization: Bearer KEY, or as X-API-Key: KEY")
    for wrong in ("Bearer wrong", "bearer " + ring.tokens["operator"][:-1], "Bearer", "Bearer \xe9"):
        status, header, said = answer({"authorization": wrong.encode("latin-1")})
        assert (status, header) == (401, f'{realm}, error="invalid_token"')
        assert said == "this key is not known here; ask the operator for one"
    assert answer({"authorization": "Basic " + ring.tokens["operator"]})[0] == 401
    assert answer({**ring.bearer("operator"), "x-api-key": ring.tokens["asker"]})[2].startswith("the request has more")
    status, header, said = answer(ring.bearer("asker"))
    assert (status, header) == (403, f'{realm}, error="insufficient_scope", scope="admin"')
    assert said == "this key does not have the right admin; ask the operator for one that has"
    assert ask(client, server, ring.bearer("operator"), batch).status_code == 403
    assert client.get("/metrics", headers={"X-API-Key": ring.tokens["operator"]}).status_code == 200


def test_evidence_is_in_the_answers_of_a_key_that_has_the_right_to_it_only(client, server, ring, batch, classifier):
    def names(caller):
        return [output["name"] for output in ask(client, server, ring.bearer(caller), batch).json()["outputs"]]

    assert names("asker") == PUBLIC
    assert names("analyst") == list(Verdicts.FIELDS)
    described = client.get(f"/v2/models/{server.service.default.served.model}", headers=ring.bearer("analyst")).json()
    assert [output["name"] for output in described["outputs"]] == list(Verdicts.FIELDS)
    assert client.get("/page.json", headers=ring.bearer("analyst")).json()["evidence"]
    assert client.get("/page.json", headers=ring.bearer("asker")).json()["evidence"] is None
    png = encode_png(batch[0])
    one, other = (
        client.post("/classify", content=png, headers=ring.bearer(who)).json() for who in ("asker", "analyst")
    )
    assert "evidence" in other["images"][0]
    assert "evidence" not in one["images"][0]
    wanted = {"inputs": [], "outputs": [{"name": "votes"}]}
    tensor = {"name": "image", "shape": [1, *batch.shape[1:]], "datatype": "FP32", "data": batch[0].ravel().tolist()}
    wanted["inputs"].append(tensor)
    denied = client.post(server.infer, json=wanted, headers=ring.bearer("asker"))
    assert denied.status_code == 403
    assert "use a key that has the right evidence" in denied.json()["error"]
    given = client.post(server.infer, json=wanted, headers=ring.bearer("analyst")).json()["outputs"][0]["data"]
    assert given == classifier(batch[:1]).votes.ravel().tolist()


def test_tritonclient_and_curl_present_keys(server, ring, batch, classifier, name):
    tensor = InferInput("image", list(batch.shape), "FP32")
    tensor.set_data_from_numpy(batch)
    with InferenceServerClient(server.url.removeprefix("http://")) as triton:
        assert triton.is_server_ready()
        with pytest.raises(InferenceServerException, match="this needs a key"):
            triton.infer(name, [tensor])
        answer = triton.infer(name, [tensor], headers=ring.bearer("asker"))
        np.testing.assert_array_equal(answer.as_numpy("label"), classifier(batch).label)
        assert triton.get_inference_statistics(headers=ring.bearer("operator"))["model_stats"][0]["name"] == name
    png = encode_png(batch[0])
    for header in (f"Authorization: Bearer {ring.tokens['asker']}", f"X-API-Key: {ring.tokens['asker']}"):
        command = ["curl", "-s", "--data-binary", "@-", "-H", header, f"{server.url}/classify"]
        assert (
            "label"
            in json.loads(subprocess.run(command, input=png, capture_output=True, check=True).stdout)["images"][0]
        )


def test_a_body_that_waits_for_leave_is_refused_before_it_is_sent(server, batch):
    with server.connect() as connection:
        connection.sendall(server.raw(None, "Expect: 100-continue", length=10**6))
        status, headers, _ = read_answer(connection)
        assert (status, headers["connection"]) == (401, "close")


def test_a_key_with_a_limit_learns_when_to_come_again(client, server, ring, batch):
    slow = ring.bearer("slow")
    large = ask(client, server, slow, np.concatenate([batch, batch[:1]]))
    assert (large.status_code, large.json()) == (
        413,
        {"error": "the request has 5 images, this key may ask about 4 at once"},
    )
    assert ask(client, server, slow, batch[:3]).status_code == 200
    early = ask(client, server, slow, batch[:2])
    assert early.status_code == 429
    assert 990 <= int(early.headers["retry-after"]) <= 1000  # one image more, at a thousandth of an image a second
    assert early.json()["error"].startswith("this key may ask about 0.001 images a second; try again in")
    assert ask(client, server, slow, batch[:1]).status_code == 200
    assert client.post("/classify", content=b"", headers=slow).status_code == 429
    assert ask(client, server, ring.bearer("asker"), batch).status_code == 200
    metrics = client.get("/metrics", headers=ring.bearer("operator")).text
    assert 'reason="rate_limited",version="1"} 2.0' in metrics
    assert 's2ap_access_denied_total{model="tiny",reason="forbidden"' in metrics


def test_what_the_queue_refuses_is_not_charged(classifier, ring, batch):
    limits = {"max_batch_rows": 2, "max_queue_rows": 2}
    with live(classifier, keys=ring.path, **limits) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(5):
            assert ask(client, server, ring.bearer("slow"), batch[:3]).status_code == 413
        assert ask(client, server, ring.bearer("slow"), batch[:2]).status_code == 200


def test_without_keys_nobody_needs_one(classifier):
    with serving(classifier) as client:
        assert client.get("/metrics", headers={"authorization": "Bearer anything"}).status_code == 200
        assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_the_description_says_how_to_present_a_key(client, ring):
    described = client.get("/openapi.json", headers=ring.bearer("asker")).json()
    assert {scheme["type"] for scheme in described["components"]["securitySchemes"].values()} == {"http", "apiKey"}
    assert described["security"] == [{"bearer": []}, {"header": []}]
    assert described["paths"]["/v2/health/live"]["get"]["security"] == []
    assert "security" not in described["paths"]["/metrics"]["get"]


def test_a_changed_file_is_read_while_requests_come_and_none_is_lost(classifier, tmp_path, batch, monkeypatch, caplog):
    monkeypatch.setattr(watched, "POLL_S", 0.02)
    caplog.set_level(logging.INFO)
    ring = Ring(tmp_path)
    done = threading.Event()

    with live(classifier, keys=ring.path) as server, httpx.Client(base_url=server.url) as client:

        def hammer(statuses: list[int]) -> None:
            with httpx.Client(base_url=server.url) as own:
                while not done.is_set():
                    statuses.append(ask(own, server, ring.bearer("asker"), batch).status_code)

        found: list[list[int]] = [[], []]
        hammering = [threading.Thread(target=hammer, args=[statuses]) for statuses in found]
        for thread in hammering:
            thread.start()
        for _ in range(5):
            ring.add("newcomer", "infer")
            until(lambda: ask(client, server, ring.bearer("newcomer"), batch).status_code == 200)
            ring.remove("newcomer")
            until(lambda: ask(client, server, ring.bearer("newcomer"), batch).status_code == 401)
        ring.path.write_text("[[key]]\nname = 3")
        until(lambda: "the former keys stay in use" in caplog.text)
        ring.path.unlink()
        until(lambda: caplog.text.count("the former keys stay in use") == 2)
        time.sleep(0.1)
        assert caplog.text.count("the former keys stay in use") == 2
        ring.remove("asker")
        until(lambda: ask(client, server, ring.bearer("asker"), batch).status_code == 401)
        done.set()
        for thread in hammering:
            thread.join(20)
    for statuses in found:
        accepted = statuses.count(200)
        assert accepted > 10
        assert statuses == [200] * accepted + [401] * (len(statuses) - accepted)
