"""POST /classify over a real connection: one image file as it is, several as a form or in JSON."""

import base64
import gzip
import io
import json
import threading

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.runtime.image_files import encoded
from tests.runtime.serve.live import live
from tests.runtime.serving_client import assert_error, scrape

from s2ap_defend.serve import classify

LARGE = encoded(np.zeros((16, 24, 3), np.uint8))


@pytest.fixture(scope="module")
def client(classifier):
    limits = {"max_body_bytes": 100_000, "max_queue_rows": 32}
    with live(classifier, **limits) as server, httpx.Client(base_url=server.url) as client:
        yield client


@pytest.fixture(scope="module")
def pixels(classifier):
    """Images [4, C, H, W] of whole levels, 0 to 255."""
    return np.random.default_rng(7).integers(0, 256, (4, *classifier.input_shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(pixels):
    """They as PNG files."""
    return [encoded(image.transpose(1, 2, 0)) for image in pixels]


@pytest.fixture(scope="module")
def expected(classifier, pixels):
    """The answer to each, without its name."""
    verdicts = classifier(pixels / np.float32(255))
    return [
        {
            "label": int(label),
            "class": classifier.classes[label],
            "adversarial": bool(verdicts.adversarial[row]),
            "abstained": bool(verdicts.abstained[row]),
        }
        for row, label in enumerate(verdicts.label)
    ]


def as_json(*files: bytes, **more) -> dict:
    images = [{"name": f"{i}.png", "b64": base64.b64encode(file).decode()} for i, file in enumerate(files)]
    return {"images": images, **more}


@pytest.mark.parametrize(
    "content_type", [None, "image/png", "image/jpeg", "application/octet-stream", "application/x-www-form-urlencoded"]
)
def test_one_file_as_it_is_gets_label_and_class_and_no_evidence(client, files, expected, content_type):
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = client.post("/classify", content=files[0], headers=headers)
    assert response.status_code == 200
    assert response.json() == {"images": [{"name": "image 1", **expected[0]}]}


def test_a_form_is_answered_in_order_with_the_names_and_what_cannot_be_read_does_not_stop_the_others(
    client, files, expected
):
    form = [
        ("a", ("one.png", files[0], "image/png")),
        ("b", ("no.png", files[1][:60], "image/png")),
        ("a", ('zwei "ü".png', files[2])),
        ("the field", (None, files[3])),
        ("d", ("large.png", LARGE)),
    ]
    answers = client.post("/classify", files=form).json()["images"]
    assert [answer["name"] for answer in answers] == ["one.png", "no.png", "zwei %22ü%22.png", "the field", "large.png"]
    assert [set(answer) for answer in answers if "error" in answer] == [{"name", "error"}] * 2
    assert answers[1]["error"].startswith("no.png ")
    assert "is 24x16 pixels, the model takes 8x8" in answers[4]["error"]
    for answer, i in ((answers[0], 0), (answers[2], 2), (answers[3], 3)):
        assert answer == {"name": answer["name"], **expected[i]}


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_json_with_base64_is_answered_with_its_names(client, files, expected, encoding):
    request = as_json(*files, parameters={"priority": 1, "timeout": 60_000_000})
    request["images"] += [{"b64": request["images"][0]["b64"]}, {"name": "x", "b64": "no base64"}]
    body = json.dumps(request).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    response = client.post("/classify", content=gzip.compress(body) if encoding == "gzip" else body, headers=headers)
    *answers, unnamed, wrong = response.json()["images"]
    assert answers == [{"name": f"{i}.png", **expected[i]} for i in range(4)]
    assert unnamed == {"name": "image 5", **expected[0]}
    assert wrong["error"].startswith("b64 is no base64 (")


def test_files_of_other_sizes_are_resized_where_the_request_says_how(client, classifier):
    answers = {}
    shades = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for how in ("crop", "stretch", "pad"):
        response = client.post("/classify", params={"resize": how}, content=encoded(shades))
        in_json = client.post("/classify", json=as_json(encoded(shades), parameters={"resize": how}))
        answers[how] = response.json()["images"][0]["label"]
        assert in_json.json()["images"][0]["label"] == answers[how]
    for how, text in (("bend", "resize must be one of trained, crop"), ("trained", "does not say that its training")):
        assert_error(client.post("/classify", params={"resize": how}, content=LARGE), 400, text)
    assert_error(client.post("/classify", content=LARGE), 400, "is 24x16 pixels, the model takes 8x8")


def test_evidence_is_answered_for_each_file_where_it_is_exposed(classifier, pixels, files):
    with live(classifier, expose_evidence=True) as server:
        answers = httpx.post(f"{server.url}/classify", json=as_json(files[0], b"broken", files[1])).json()["images"]
    verdicts = classifier(pixels[:2] / np.float32(255))
    assert "evidence" not in answers[1]
    for row, answer in enumerate((answers[0], answers[2])):
        evidence = answer["evidence"]
        assert evidence["votes"] == verdicts.votes[row].tolist()
        assert evidence["members_used"] == verdicts.members_used[row]
        assert evidence["base_class"] == classifier.classes[verdicts.base_label[row]]
        shown, purified = (decoded(evidence[name]) for name in ("image", "purified"))
        np.testing.assert_array_equal(shown, pixels[row, 0])
        np.testing.assert_allclose(purified / 255, verdicts.purified[row, 0], atol=0.5 / 255 + 1e-6)


def decoded(url: str) -> np.ndarray:
    kind, _, data = url.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=np.float32)


def test_images_of_one_request_share_batches_and_are_counted(classifier, files):
    with live(classifier) as server, httpx.Client(base_url=server.url) as client:
        client.post("/classify", json=as_json(*files))
        found = scrape(client)
    assert found["s2ap_inference_rows_total"][()] == 4
    assert found["s2ap_inference_batches_total"][()] == 1
    assert found["s2ap_inference_requests_total"]["success", "http"] == 1


def form(*parts: bytes, boundary: str = "b", end: bytes = b"--b--\r\n") -> dict:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + end
    return {"content": body, "headers": {"Content-Type": f"multipart/form-data; boundary={boundary}"}}


def json_body(text: str) -> dict:
    return {"content": text, "headers": {"Content-Type": "application/json"}}


PART = b'Content-Disposition: form-data; name="f"; filename="f.png"\r\n\r\n'
REFUSED = {
    "empty form": (form(), 400, "the request has no images; send at least one"),
    "no form": ({**form(), "content": b"what"}, 400, "has no part of multipart/form-data"),
    "nothing as a form": ({**form(), "content": b""}, 400, "has no part of multipart/form-data"),
    "no file chosen": (form(b'Content-Disposition: form-data; name="f"; filename=""\r\n\r\n'), 400, "has no images"),
    "cut off in a file": (form(PART + b"x", end=b""), 400, "is cut off"),
    "cut off in a delimiter": (form(PART + b"x", end=b"--b"), 400, "is cut off"),
    "part without a header": (form(b"x"), 400, "has no header"),
    "part of no field": (form(b"Content-Type: image/png\r\n\r\nx"), 400, "no header Content-Disposition: form-data"),
    "no boundary": (form(boundary=""), 400, "names no boundary of 1 to 70 bytes"),
    "long boundary": (form(boundary="b" * 71), 400, "names no boundary of 1 to 70 bytes"),
    "long name": (form(PART.replace(b"f.png", b"f" * 256)), 400, "the name of image 1 has over 255 characters"),
    "too many files": (form(*[PART + b"x"] * 33), 413, "more than 32 images"),
    "no file that can be read": (
        form(PART + b"x", PART + b"y"),
        400,
        "none of the 2 images can be read; the first: f.png is no PNG, JPEG, WebP or BMP image",
    ),
    "large": ({"content": bytes(100_001)}, 413, "the body has 100001 bytes, this server takes 100000"),
    "GIF": ({"content": b"GIF89a"}, 400, "image 1 is GIF, which is not read"),
    "empty": ({"content": b""}, 400, "image 1 is no PNG, JPEG, WebP or BMP image"),
    "text": ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415, "Content-Type 'text/plain' is not ta"),
    "other multipart": ({**form(), "headers": {"Content-Type": "multipart/mixed; boundary=b"}}, 415, "is not taken"),
    "unknown encoding": ({"content": b"x", "headers": {"Content-Encoding": "br"}}, 415, "expected gzip or deflate"),
    "no JSON": (json_body("{"), 400, "is not valid JSON"),
    "JSON list": (json_body("[]"), 400, "must be a JSON object with a list"),
    "JSON without images": (json_body('{"images": []}'), 400, "has no images"),
    "JSON without b64": (
        json_body('{"images": [{"name": "a"}]}'),
        400,
        "image 1 must be an object with a short string",
    ),
    "JSON with a long name": (
        json_body('{"images": [{"name": "%s", "b64": ""}]}' % ("n" * 300)),
        400,
        "image 1 must be an object with a short string",
    ),
    "JSON of empty lists": (json_body('{"images": [%s[]]}' % ("[]," * 30_000)), 413, "over 65536 bytes around"),
    "JSON of quotes": (json_body('{"images": ["%s"]}' % ('\\"' * 45_000)), 413, "over 65536 bytes around"),
    "JSON of backslashes": (json_body('{"images": ["%s"]}' % ("\\\\" * 45_000)), 413, "over 65536 bytes around"),
    "JSON that does not end": (json_body('{"images": ["%s' % ("A" * 90_000)), 413, "over 65536 bytes around"),
    "JSON with NUL": (json_body('{"images": [{"b64": "\\u00000"}]}'), 400, "has a NUL character"),
    "JSON parameters": (json_body('{"images": [{"b64": ""}], "parameters": 1}'), 400, "parameters must be a JSON obj"),
    "unknown parameter": ({"content": b"x", "params": {"size": "8"}}, 400, "there is no parameter 'size'; choose from"),
    "parameter twice": ({"content": b"x", "params": {"resize": ["crop", "pad"]}}, 400, "has a parameter twice"),
    "many parameters": ({"content": b"x", "params": {"a": list("bcdef")}}, 400, "has more parameters than model,"),
    "timeout": ({"content": b"x", "params": {"timeout": "1.5"}}, 400, "timeout must be a whole number, 0 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_error(client, name):
    request, status, text = REFUSED[name]
    assert_error(client.post("/classify", **request), status, text)


def test_files_are_read_and_verdicts_written_off_the_event_loop(client, files, monkeypatch):
    threads = []

    def recorded(function):
        def call(*arguments, **options):
            threads.append(threading.current_thread().name.rpartition("_")[0])
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(classify, "open_picture", recorded(classify.open_picture))
    monkeypatch.setattr(classify, "json_response", recorded(classify.json_response))
    assert client.post("/classify", content=files[0]).status_code == 200
    assert threads == ["s2ap-images", "s2ap-images"]


def test_bodies_and_answers_are_as_described(client, files):
    described = client.get("/openapi.json").json()
    operation = described["paths"]["/classify"]["post"]
    for content_type in operation["requestBody"]["content"]:
        headers = {"Content-Type": f"{content_type}; boundary=b"}
        assert client.post("/classify", content=b"", headers=headers).status_code == 400, content_type
    assert_error(client.post("/classify", params={"model": "?"}), 404, "there is no model '?'; this server has 'tiny'")
    for parameter in operation["parameters"][1:]:
        assert_error(client.post("/classify", params={parameter["name"]: "?"}), 400, f"parameter {parameter['name']}")
    schemas = described["components"]["schemas"]
    read, broken = client.post("/classify", json=as_json(files[0], b"broken")).json()["images"]
    assert list(read) == schemas["ImageVerdict"]["required"]
    assert list(broken) == schemas["NotRead"]["required"]


def test_other_methods_and_paths_lead_nowhere(client, files):
    assert_error(client.get("/classify"), 405, "GET is not allowed")
    assert_error(client.post("/classify/", content=files[0]), 404, "there is nothing at /classify/")


def test_a_timeout_that_cannot_be_met_is_504(client, files):
    assert_error(client.post("/classify", params={"timeout": "1"}, content=files[0]), 504, "")


def test_a_request_may_not_have_more_pixels_than_four_of_the_largest_images(client, monkeypatch, files):
    monkeypatch.setattr(classify, "MOST_PIXELS", 3 * 64)
    assert client.post("/classify", json=as_json(*files[:3])).status_code == 200
    assert_error(client.post("/classify", json=as_json(*files)), 413, "the images have over 192 pixels in all")
