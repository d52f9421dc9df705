"""Image files of every kind at the real server: what the decoder makes of them, or its refusal."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image
from tests.runtime.image_files import CASES, COLOURS, encoded
from tests.runtime.running_server import running

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images import read
from s2ap_defend.serve import ServerConfig

LARGE = encoded(np.repeat(np.repeat(COLOURS, 3, axis=0), 2, axis=1))  # 16x24


@pytest.fixture(scope="module")
def classifier(tiny_model_path):
    return DefendedClassifier.load(tiny_model_path, device="cpu", threads=1)


def posted(server, content: bytes) -> httpx.Response:
    return httpx.post(f"http://{server.address}/classify", content=content)


def assert_answered_as_read(response, classifier, content: bytes, **options) -> None:
    """The answer is that on the pixels of `read`, and the evidence shows them."""
    pixels = read(content, classifier.input_shape, **options)
    verdicts, (answer,) = classifier(pixels[None]), response.json()["images"]
    assert (answer["label"], answer["adversarial"]) == (verdicts.label[0], verdicts.adversarial[0])
    assert answer["class"] == classifier.classes[answer["label"]]
    shown = Image.open(io.BytesIO(base64.b64decode(answer["evidence"]["image"].partition(",")[2])))
    assert np.array_equal(np.asarray(shown), np.rint(pixels[0] * 255))


def test_the_server_reads_every_kind_as_the_decoder_does(tiny_model_path, classifier):
    with running(tiny_model_path, "--expose-evidence") as server:
        for name, case in CASES.items():
            response = posted(server, case.content)
            if isinstance(case.shown, str):
                with pytest.raises(InputError) as caught:
                    read(case.content, classifier.input_shape, name="image 1")
                assert (response.status_code, response.json()) == (400, {"error": str(caught.value)}), name
            else:
                assert response.status_code == 200, name
                assert_answered_as_read(response, classifier, case.content)
        assert "is 16x24 pixels, the model takes 8x8" in posted(server, LARGE).json()["error"]


@pytest.mark.parametrize("how", ["crop", "stretch"])
def test_the_server_composites_on_white_and_resizes_where_it_is_told_to(tiny_model_path, classifier, how):
    with running(tiny_model_path, "--expose-evidence", "--on-white", "--resize", how) as server:
        for content in (LARGE, CASES["RGBA"].content, CASES["RGBA 16"].content, CASES["palette with alpha"].content):
            assert_answered_as_read(posted(server, content), classifier, content, on_white=True, resize=how)
        assert httpx.get(f"http://{server.address}/page.json").json()["resize"] == how


def test_an_unknown_way_to_resize_is_refused(tiny_model_path):
    with pytest.raises(RecipeError, match="resize is 'bend', expected one of trained, crop, stretch, pad"):
        ServerConfig(model=tiny_model_path, resize="bend")
