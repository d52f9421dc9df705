"""Large JSON requests: read as a JSON parser would, in pieces, and refused before anything large is made of them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2ap_defend.serve import json_numbers
from s2ap_defend.serve.errors import ProtocolError, TooLargeError
from s2ap_defend.serve.json_numbers import JsonNumbers
from s2ap_defend.serve.protocol import decode_request
from s2ap_defend.serve.served import ServedModel

SERVED = ServedModel(model="digits", shape=(1, 8, 8), classes=10)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 4))
NUMBERS = st.floats(-1e30, 1e30) | st.integers(-(2**70), 2**70)


@pytest.fixture(scope="module", autouse=True)
def _small_pieces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "PIECE_BYTES", 100)
        yield


def request(rows: int, text: str | None = None, **changes) -> bytes:
    images = np.random.default_rng(rows).random((rows, 1, 8, 8))
    tensor = {"name": "image", "shape": [rows, 1, 8, 8], "datatype": "FP32", "data": "DATA"}
    message = json.dumps({"id": "mine", "inputs": [tensor], "outputs": [{"name": "label"}], **changes})
    return message.replace('"DATA"', json.dumps(images.tolist()) if text is None else text).encode()


@given(shape=SHAPES, nested=st.booleans(), indent=st.sampled_from([None, 1]), data=st.data())
@settings(deadline=None)
def test_numbers_are_read_as_a_json_parser_reads_them(shape, nested, indent, data):
    size = int(np.prod(shape))
    values = data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
    expected = np.array(values, dtype=np.float64).astype(np.float32).reshape(shape)
    lists = np.array(values, dtype=object).reshape(shape).tolist() if nested else values
    text = json.dumps(lists, indent=indent).encode()
    np.testing.assert_array_equal(JsonNumbers(text).read(shape), expected)


@given(
    nested=st.booleans(),
    edits=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([*"[],.-eE+ 07", ""])), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=400)
def test_what_a_json_parser_refuses_or_finds_in_another_shape_is_refused(nested, edits):
    shape = (2, 1, 2, 2)
    values = np.arange(8.0) / 7
    text = json.dumps((values.reshape(shape) if nested else values).round(2).tolist())
    for place, by in edits:
        text = text[:place] + by + text[place + 1 :]
    try:
        expected = np.array(json.loads(text), dtype=np.float64)
        right = expected.shape in {shape, (8,)}
    except ValueError:
        right = False
    if right:
        np.testing.assert_array_equal(JsonNumbers(text.encode()).read(shape).ravel(), np.float32(expected).ravel())
    else:
        with pytest.raises(ProtocolError, match="data of image"):
            JsonNumbers(text.encode()).read(shape)


@pytest.mark.parametrize("changes", [{}, {"parameters": {"timeout": 5}}])
def test_a_large_request_is_decoded_like_a_small_one(changes):
    body = request(100, **changes)
    assert len(body) > json_numbers.LARGE_BYTES
    decoded = decode_request(body, None, SERVED)
    np.testing.assert_array_equal(decoded.images, np.float32(np.random.default_rng(100).random((100, 1, 8, 8))))
    assert (decoded.id, decoded.outputs) == ("mine", (("label", False),))


EMPTY = "[" + "[]," * 50_000 + "[]]"
BOMBS = {
    "empty lists": (request(1, EMPTY), ProtocolError, "a flat list of 64 numbers, or lists nested as its shape"),
    "deep": (request(1, "[" * 100_000), TooLargeError, "around the numbers of data"),
    "deep and closed": (request(1, "[" * 50_000 + "]" * 50_000), ProtocolError, "a number in it does not end"),
    "many numbers": (request(1, "[" + "0," * 50_000 + "0]"), ProtocolError, "a flat list of 64 numbers"),
    "too few": (request(4000, "[" + "0.123456," * 9_000 + "0]"), ProtocolError, "fewer numbers than its shape"),
    "commas": (request(1, "[" + "," * 100_000 + "]"), ProtocolError, "a flat list of 64 numbers"),
    "digits": (request(1, "[" + "1" * 100_000 + "]"), ProtocolError, "a number in it does not end"),
    "spaces": (request(1, "[" + " " * 100_000 + "]"), ProtocolError, "a number in it does not end"),
    "words": (request(1, "[" + "0.5," * 20_000 + "null]"), ProtocolError, "must hold numbers only"),
    "elsewhere": (request(1, "[]", id="x" * 100_000), TooLargeError, "bytes around the numbers of data"),
    "no object": (EMPTY.encode(), TooLargeError, "around the numbers of data"),
    "parameters": (request(1, "[0]", parameters={"data": [0.5] * 20_000}), TooLargeError, "around the numbers of data"),
    "strings": (request(1, json.dumps(["0.5"] * 20_000)), TooLargeError, "around the numbers of data"),
    "cut off": (request(100)[:-80], ProtocolError, "not valid JSON"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_by_what_is_wrong_with_them(kind):
    body, error, text = BOMBS[kind]
    with pytest.raises(error) as caught:
        decode_request(body, None, SERVED)
    assert text in str(caught.value)
