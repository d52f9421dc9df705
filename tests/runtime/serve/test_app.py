"""The application over a real defended model: routes, answers, limits and what it hides."""

import gzip
import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from tests.runtime.serving_client import assert_error, in_chunks, infer, scrape, serving, tensors

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.types import Verdicts


@pytest.fixture(scope="module")
def client(classifier):
    with serving(classifier) as client:
        yield client


@pytest.fixture(scope="module")
def open_client(classifier):
    with serving(classifier, expose_evidence=True) as client:
        yield client


def png(image: np.ndarray) -> bytes:
    """An image [C, H, W] as a PNG file."""
    pixels = np.rint(image * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_answer_is_the_verdict_and_nothing_else(client, classifier, batch, name):
    response = infer(client, batch, id="mine")
    found, expected = tensors(response), classifier(batch)
    assert list(found) == ["label", "adversarial", "abstained"]
    np.testing.assert_array_equal(found["label"], expected.label)
    np.testing.assert_array_equal(found["adversarial"], expected.adversarial)
    np.testing.assert_array_equal(found["abstained"], expected.abstained)
    assert (response.json()["id"], response.json()["model_name"], response.json()["model_version"]) == (
        "mine",
        name,
        "1",
    )


def test_exposed_evidence_is_every_output_of_the_classifier(open_client, classifier, batch):
    found, expected = tensors(infer(open_client, batch)), classifier(batch)
    assert tuple(found) == Verdicts.FIELDS
    for field in Verdicts.FIELDS:
        np.testing.assert_array_equal(found[field].astype(getattr(expected, field).dtype), getattr(expected, field))


def test_asking_for_hidden_evidence_is_forbidden_and_says_how_to_see_it(client, open_client, batch):
    wanted = [{"name": "votes"}]
    assert_error(infer(client, batch, outputs=wanted), 403, "--expose-evidence")
    assert list(tensors(infer(open_client, batch, outputs=wanted))) == ["votes"]


@pytest.mark.parametrize("length", [None, 0])
def test_raw_and_binary_bodies_get_binary_answers(client, classifier, batch, name, length):
    head = b"" if length == 0 else binary_head(batch[:1])
    response = client.post(
        f"/v2/models/{name}/versions/1/infer",
        content=head + batch[:1].tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    size = int(response.headers["inference-header-content-length"])
    outputs = json.loads(response.content[:size])["outputs"]
    assert [output["parameters"]["binary_data_size"] for output in outputs] == [8, 1, 1]
    assert response.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(response.content[size : size + 8], "<i8") == classifier(batch[:1]).label


def binary_head(images: np.ndarray) -> bytes:
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32"}
    tensor["parameters"] = {"binary_data_size": images.nbytes}
    return json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()


@pytest.mark.parametrize(
    ("pixel", "text"),
    [(np.nan, "NaN or infinite"), (np.inf, "NaN or infinite"), (1.5, "values lie in"), (-0.5, "values lie in")],
)
def test_values_that_are_no_pixels_are_refused(client, batch, name, pixel, text):
    wrong = batch.copy()
    wrong[2, 0, 3, 3] = pixel
    head = binary_head(wrong)
    response = client.post(
        f"/v2/models/{name}/infer",
        content=head + wrong.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert_error(response, 400, text)


def test_a_wrong_request_never_reaches_the_batch_of_its_neighbours(classifier, batch):
    with serving(classifier) as client:
        assert_error(infer(client, np.full_like(batch, 2.0)), 400, "values lie in")
        assert len(tensors(infer(client, batch))["label"]) == 4
        stats = client.get("/v2/models/stats").json()["model_stats"][0]
        assert (stats["inference_count"], stats["execution_count"]) == (4, 1)


def test_every_error_of_the_router_is_an_error_object(client, name):
    assert_error(client.get("/nothing"), 404, "there is nothing at /nothing")
    assert_error(client.get("/v2/"), 404, "there is nothing")
    assert_error(client.get("/v2/models/other"), 404, "there is no model 'other'")
    assert_error(client.get(f"/v2/models/{name}/versions/2"), 404, "has no version '2'")
    assert_error(client.post("/v2/models/other/infer", content=b"{}"), 404, "there is no model 'other'")
    refused = client.get(f"/v2/models/{name}/infer")
    assert_error(refused, 405, "GET is not allowed")
    assert refused.headers["allow"] == "POST"
    refused = client.request("DELETE", "/v2")
    assert_error(refused, 405, "DELETE is not allowed")
    assert "GET" in refused.headers["allow"]


def test_bodies_are_limited_as_sent_and_as_inflated(classifier, batch, name):
    with serving(classifier, max_body_bytes=4000) as client:
        url = f"/v2/models/{name}/infer"
        assert_error(client.post(url, content=bytes(5000)), 413, "the body has 5000 bytes, this server takes 4000")
        assert_error(client.post(url, content=in_chunks(bytes(3000), bytes(3000))), 413, "more than 4000 bytes")
        bomb = gzip.compress(bytes(100_000))
        assert_error(client.post(url, content=bomb, headers={"Content-Encoding": "gzip"}), 413, "inflated body")
        assert_error(client.post(url, content=b"x", headers={"Content-Encoding": "br"}), 415, "gzip or deflate")


def test_compressed_requests_are_taken(client, classifier, batch, name):
    tensor = {"name": "image", "shape": list(batch.shape), "datatype": "FP32", "data": batch.tolist()}
    body = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    response = client.post(f"/v2/models/{name}/infer", content=body, headers={"Content-Encoding": "gzip"})
    np.testing.assert_array_equal(tensors(response)["label"], classifier(batch).label)


def test_a_request_larger_than_a_batch_is_answered_whole(classifier):
    many = np.random.default_rng(6).random((150, *classifier.input_shape), dtype=np.float32)
    with serving(classifier, max_batch_rows=16, max_queue_rows=150) as client:
        np.testing.assert_array_equal(tensors(infer(client, many))["label"], classifier(many).label)
        too_many = np.concatenate([many, many[:1]])
        assert_error(infer(client, too_many), 413, "151 images")


def test_health_metadata_and_configuration(client, name, classifier):
    shape = list(classifier.input_shape)
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get(f"/v2/models/{name}/ready").json() == {"name": name, "ready": True}
    assert client.get(f"/v2/models/{name}/versions/1/ready").status_code == 200
    assert client.get("/v2").json()["name"] == "s2ap-defend"
    metadata = client.get(f"/v2/models/{name}").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, *shape]}]
    assert metadata["outputs"] == [
        {"name": "label", "datatype": "INT64", "shape": [-1]},
        {"name": "adversarial", "datatype": "BOOL", "shape": [-1]},
        {"name": "abstained", "datatype": "BOOL", "shape": [-1]},
    ]
    config = client.get(f"/v2/models/{name}/versions/1/config").json()
    assert config["max_batch_size"] == 32
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": shape}]
    assert tuple(json.loads(config["parameters"]["classes"]["string_value"])) == classifier.classes


def test_metadata_describes_exactly_the_tensors_that_are_answered(open_client, batch, name):
    described = {output["name"]: output for output in open_client.get(f"/v2/models/{name}").json()["outputs"]}
    answered = infer(open_client, batch).json()["outputs"]
    assert list(described) == [output["name"] for output in answered]
    for output in answered:
        assert output["datatype"] == described[output["name"]]["datatype"]
        assert output["shape"] == [len(batch), *described[output["name"]]["shape"][1:]]


def test_statistics_have_the_protocols_shape(classifier, batch, name):
    with serving(classifier, expose_evidence=True) as client:
        infer(client, batch)
        infer(client, batch[:1])
        infer(client, batch * 3)
        (stats,) = client.get(f"/v2/models/{name}/stats").json()["model_stats"]
    assert (stats["name"], stats["version"]) == (name, "1")
    assert (stats["inference_count"], stats["execution_count"]) == (5, 2)
    assert abs(stats["last_inference"] / 1000 - time.time()) < 60
    counts = {key: value["count"] for key, value in stats["inference_stats"].items()}
    assert counts["success"] == counts["queue"] == counts["compute_infer"] == 2
    assert counts["fail"] == 1
    assert [entry["batch_size"] for entry in stats["batch_stats"]] == [1, 4]
    assert stats["batch_stats"][0]["compute_infer"]["ns"] > 0


def test_metrics_count_requests_images_verdicts_and_rejections(classifier, batch):
    with serving(classifier, expose_evidence=True) as client:
        infer(client, batch)
        infer(client, batch * 3)
        client.post("/v2/models/other/infer", content=b"{}")
        infer(client, np.zeros((2000, *classifier.input_shape), np.float32))
        found = scrape(client)
        assert client.get("/metrics").headers["content-type"].startswith("text/plain")
    expected = classifier(batch)
    requests = found["s2ap_inference_requests_total"]
    assert requests["success", "http"] == 1
    assert requests["invalid", "http"] == 1
    assert requests["not_found", "http"] == 1
    assert requests["too_large", "http"] == 1
    assert found["s2ap_inference_rejected_total"]["too_large",] == 1
    assert found["s2ap_inference_rows_total"][()] == 4
    assert found["s2ap_inference_batches_total"][()] == 1
    assert found["s2ap_inference_batch_rows_sum"][()] == 4
    assert found["s2ap_inference_request_duration_seconds_count"][()] == 4
    assert found["s2ap_inference_queue_duration_seconds_count"][()] == 1
    assert found["s2ap_inference_compute_duration_seconds_count"]["whole",] == 1
    assert found["s2ap_inference_pending_rows"][()] == 0
    assert found["s2ap_inference_pending_requests"][()] == 0
    assert found["s2ap_model_ready"][()] == 1
    assert found["s2ap_defense_verdicts_total"]["adversarial",] == expected.adversarial.sum()
    assert found["s2ap_defense_verdicts_total"]["clean",] == 4 - expected.adversarial.sum()
    assert found["s2ap_defense_members_used_sum"][()] == expected.members_used.sum()
    assert found["s2ap_defense_label_change_rate_count"][()] == 4
    assert found["s2ap_defense_corrections_total"][()] == expected.corrected.sum()
    assert "s2ap_build_info" in found


def test_a_model_that_abstains_says_so_in_answers_and_metrics(abstaining_model_path):
    abstaining = DefendedClassifier.load(abstaining_model_path, device="cpu", threads=1)
    images = np.random.default_rng(0).integers(0, 256, (32, *abstaining.input_shape)) / np.float32(255)
    images = images.astype(np.float32)
    expected = abstaining(images)
    undecided = expected.abstained & ~expected.adversarial
    kinds = {"adversarial": expected.adversarial, "undecided": undecided, "clean": ~expected.abstained}
    assert all(rows.any() for rows in kinds.values())
    with serving(abstaining) as client:
        assert tensors(infer(client, images))["abstained"].tolist() == expected.abstained.tolist()
        counted = {verdict: int(rows.sum()) for verdict, rows in kinds.items()}
        assert {verdict: scrape(client)["s2ap_defense_verdicts_total"][verdict,] for verdict in kinds} == counted
        for rows in kinds.values():
            i = int(rows.argmax())
            answer = client.post("/classify", content=png(images[i])).json()["images"][0]
            assert (answer["abstained"], answer["label"]) == (expected.abstained[i], expected.label[i])


def test_metrics_hide_what_answers_hide(client, batch):
    infer(client, batch)
    hidden = {"s2ap_defense_members_used", "s2ap_defense_label_change_rate", "s2ap_defense_corrections"}
    assert not [name for name in scrape(client) if name.startswith(tuple(hidden))]


def times(client) -> tuple[list, dict]:
    """Everything that statistics and metrics say of time."""
    stats = client.get("/v2/models/stats").json()["model_stats"][0]
    shown = {
        key: value
        for key, value in scrape(client).items()
        if ("duration_seconds" in key or "cpu" in key) and not key.endswith("_created")
    }
    return [stats["inference_stats"], stats["batch_stats"]], shown


def test_times_are_published_a_window_of_images_at_a_time(classifier, monkeypatch):
    monkeypatch.setattr("s2ap_defend.serve.counts.WINDOW_ROWS", 20)
    many = np.random.default_rng(6).random((8, *classifier.input_shape), dtype=np.float32)
    with serving(classifier) as client:
        before = times(client)
        assert not [key for key in before[1] if "cpu" in key]
        for _ in range(2):
            infer(client, many)
            infer(client, many * 3)
            assert times(client) == before
        assert client.get("/v2/models/stats").json()["model_stats"][0]["inference_count"] == 16
        infer(client, many)
        (requests, batches), shown = times(client)
        assert requests["queue"]["count"] == shown["s2ap_inference_queue_duration_seconds_count"][()] == 3
        assert requests["compute_infer"]["ns"] > 0
        assert times(client) == ([requests, batches], shown)


def test_metrics_do_not_grow_with_what_clients_send(client):
    before = len(client.get("/metrics").text.splitlines())
    for number in range(5):
        client.post(f"/v2/models/other-{number}/infer", content=b"{}")
    assert len(client.get("/metrics").text.splitlines()) == before
