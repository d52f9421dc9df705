"""The codec: what it takes, what it says of everything else, and that nothing but ProtocolError ever leaves it."""

import json

import numpy as np
import pytest
from tests.runtime.serve.protocol_cases import IMAGES, NESTED, OPEN, SERVED, SHAPE, VALUES

from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.json_numbers import LARGE_BYTES
from s2ap_defend.serve.protocol import decode_header_length, decode_request, encode_response
from s2ap_defend.serve.served import InferRequest, ServedModel
from s2ap_defend.types import Verdicts


def request(**changes):
    image = {"name": "image", "shape": [1, *SHAPE], "datatype": "FP32", "data": VALUES}
    return {"inputs": [image], **changes}


def image(**changes):
    made = {**request()["inputs"][0], **changes}
    return {"inputs": [{key: value for key, value in made.items() if value is not None}]}


def binary(data: bytes, size: int | None = None, datatype: str = "FP32", shape: list[int] | None = None, **changes):
    parameters = {"binary_data_size": len(data) if size is None else size}
    tensor = image(data=None, datatype=datatype, shape=shape or [1, *SHAPE], parameters=parameters)
    head = json.dumps({**tensor, **changes}).encode()
    return head + data, len(head)


def decode(message, served=SERVED) -> InferRequest:
    return decode_request(json.dumps(message).encode(), None, served)


def verdicts(rows: int) -> Verdicts:
    rng = np.random.default_rng(rows)
    return Verdicts(
        label=rng.integers(0, 10, rows),
        adversarial=rng.random(rows) < 0.5,
        base_label=rng.integers(0, 10, rows),
        probabilities=rng.random((rows, 10), dtype=np.float32),
        label_change_rate=rng.random(rows, dtype=np.float32),
        log_likelihood_ratio=rng.normal(size=rows),
        members_used=rng.integers(1, 20, rows),
        votes=rng.integers(0, 512, (rows, 10)) / 256,
        purified=rng.random((rows, *SHAPE), dtype=np.float32),
        reconstruction_error=rng.random(rows, dtype=np.float32),
        abstained=rng.random(rows) < 0.5,
    )


@pytest.mark.parametrize("data", [VALUES, NESTED], ids=["flat", "nested"])
def test_json_data_may_be_flat_or_nested_as_its_shape(data):
    decoded = decode(image(data=data))
    assert decoded.images.dtype == np.float32
    np.testing.assert_array_equal(decoded.images, IMAGES)
    assert decoded.outputs == (("label", False), ("adversarial", False), ("abstained", False))


@pytest.mark.parametrize("padding", range(4))
def test_binary_data_is_aligned_whatever_the_length_of_the_json_before_it(padding):
    body, length = binary(IMAGES.tobytes(), id="x" * padding)
    decoded = decode_request(body, length, SERVED)
    np.testing.assert_array_equal(decoded.images, IMAGES)
    assert decoded.images.flags.aligned
    assert decoded.images.flags.c_contiguous


@pytest.mark.parametrize("padding", range(4))
def test_binary_fp16_becomes_the_same_numbers_in_fp32(padding):
    values = np.array([0.0, 0.1, 0.5, 1.0, 6e-8, 0.3], dtype="<f2")
    found = decode_request(*binary(values.tobytes(), datatype="FP16", id="x" * padding), SERVED).images
    assert (found.dtype, found.shape) == (np.float32, (1, *SHAPE))
    np.testing.assert_array_equal(found.ravel(), values.astype(np.float64))


@pytest.mark.parametrize("form", ["binary", "JSON", "large JSON"])
def test_uint8_is_levels_of_255(form):
    levels = np.arange(256, dtype=np.uint8)
    served = ServedModel(model="digits", shape=(1, 1, 256), classes=10)
    if form == "binary":
        body, length = binary(levels.tobytes(), datatype="UINT8", shape=[1, 1, 1, 256])
    else:
        spaces = " " * (LARGE_BYTES if form == "large JSON" else 0)
        message = image(datatype="UINT8", shape=[1, 1, 1, 256], data=levels.tolist())
        body, length = json.dumps(message).replace("[0,", f"[0,{spaces}").encode(), None
    found = decode_request(body, length, served).images
    np.testing.assert_array_equal(found.ravel(), levels / np.float32(255))


def test_header_length_zero_means_one_raw_image_and_a_binary_answer():
    decoded = decode_request(IMAGES.tobytes(), 0, SERVED)
    np.testing.assert_array_equal(decoded.images, IMAGES)
    assert decoded.outputs == (("label", True), ("adversarial", True), ("abstained", True))


def test_parameters_give_id_deadline_and_priority():
    decoded = decode(request(id="mine", parameters={"timeout": 1500, "priority": 2, "unknown": {"is": "ignored"}}))
    assert (decoded.id, decoded.timeout_s, decoded.priority) == ("mine", 0.0015, 2)
    assert decode(request(parameters={"timeout": 0, "priority": 0})).timeout_s is None
    assert decode(request(parameters={"priority": 0})).priority == 5
    assert decode(request(parameters={"priority": 2**63})).priority == 10


def test_an_output_overrides_binary_data_output():
    wanted = [{"name": "adversarial", "parameters": {"binary_data": False}}, {"name": "label"}]
    decoded = decode(request(outputs=wanted, parameters={"binary_data_output": True}))
    assert decoded.outputs == (("adversarial", False), ("label", True))


MALFORMED = [
    ([1], "the request must be a JSON object"),
    ({}, "the inputs are [], expected exactly one called 'image'"),
    ({"inputs": {}}, "inputs must be a list"),
    ({"inputs": ["image"]}, "each of the inputs must be a JSON object"),
    ({"inputs": [*request()["inputs"], *request()["inputs"]]}, "the inputs are ['image', 'image'], expected exactly"),
    (image(name="images"), "the inputs are ['images'], expected exactly one called 'image'"),
    (image(name=[[[[[[[[1]]]]]]]]), "expected exactly one called 'image'"),
    (image(shape=None), "the shape of image must be a list of whole numbers, [N, 1, 2, 3]"),
    (image(shape=[1.0, 1, 2, 3]), "the shape of image must be a list of whole numbers"),
    (image(shape=[True, 1, 2, 3]), "the shape of image must be a list of whole numbers"),
    (image(shape=[1, 2, 3]), "image has shape [1, 2, 3], the model takes [N, 1, 2, 3]"),
    (image(shape=[1, 1, 3, 2]), "image has shape [1, 1, 3, 2], the model takes [N, 1, 2, 3]"),
    (image(shape=[-1, 1, 2, 3]), "which is an empty batch"),
    (image(shape=[0, 1, 2, 3], data=[]), "which is an empty batch; send at least one image"),
    (image(shape=[2**62, 1, 2, 3]), f"data of image holds 6 numbers, but its shape is [{2**62}, 1, 2, 3]"),
    (image(shape=[2**32, 1, -2, -3]), "the model takes [N, 1, 2, 3]"),
    (image(datatype="FP64"), "image has datatype 'FP64', expected one of FP32, FP16, UINT8"),
    (image(datatype=[]), "image has datatype [], expected one of"),
    (image(datatype="FP16"), "FP16 has no form as numbers; send it as binary data, or the numbers as FP32"),
    (image(datatype="UINT8"), "must hold whole numbers from 0 to 255, because it is UINT8"),
    (image(datatype="UINT8", data=[0, 1, 2, 3, 4, 256]), "must hold whole numbers from 0 to 255"),
    (image(datatype="UINT8", data=[0, 1, 2, 3, 4, -1]), "must hold whole numbers from 0 to 255"),
    (image(datatype="UINT8", data=[0, 1, 2, 3, 4, 1e99]), "must hold whole numbers from 0 to 255"),
    (image(datatype=None), "image has datatype None, expected one of FP32, FP16, UINT8"),
    (image(data=None), "image has neither data nor a binary_data_size"),
    (image(data="AAAA"), "data of image must be a list of numbers"),
    (image(data=[]), "data of image holds 0 numbers, but its shape is [1, 1, 2, 3]"),
    (image(data=VALUES[:5]), "data of image holds 5 numbers, but its shape is [1, 1, 2, 3]"),
    (image(data=[[VALUES]]), "data of image holds lists nested as [1, 1, 6], but its shape is [1, 1, 2, 3]"),
    (image(data=[[0.0], [0.0, 0.0]]), "data of image must be a flat list, or lists nested as its shape"),
    (image(data=["0.5"] * 6), "data of image must hold numbers only"),
    (image(data=[None] * 6), "data of image must hold numbers only"),
    (image(data=[True] * 6), "data of image must hold numbers only"),
    (image(data=[{}] * 6), "data of image must hold numbers only"),
    (image(parameters=[]), "parameters of image must be a JSON object"),
    (image(parameters={"binary_data_size": 24}), "image has both data and a binary_data_size"),
    (image(data=None, parameters={"binary_data_size": "24"}), "binary_data_size must be a whole number"),
    (image(data=None, parameters={"binary_data_size": -1}), "binary_data_size must be a whole number, 0 or more"),
    (image(data=None, parameters={"binary_data_size": 24}), "binary_data_size is 24, but 0 bytes follow the JSON"),
    (image(parameters={"shared_memory_region": "x"}), "shared memory is not supported"),
    (request(id=5), "id must be a string"),
    (request(parameters=[]), "parameters must be a JSON object"),
    (request(parameters={"timeout": -1}), "parameter timeout must be a whole number, 0 or more (microseconds)"),
    (request(parameters={"timeout": 1.5}), "parameter timeout must be a whole number"),
    (request(parameters={"priority": True}), "parameter priority must be a whole number"),
    (request(parameters={"binary_data_output": 1}), "parameter binary_data_output must be true or false"),
    (request(outputs="label"), "outputs must be a list"),
    (request(outputs=[{}]), "there is no output None; choose from label, adversarial"),
    (request(outputs=[{"name": "logits"}]), "there is no output 'logits'; choose from label, adversarial"),
    (request(outputs=[{"name": "label"}, {"name": "label"}]), "output 'label' is asked for twice"),
    (request(outputs=[{"name": "label", "parameters": {"binary_data": 1}}]), "binary_data must be true or false"),
    (request(outputs=[{"name": "label", "parameters": {"classification": 3}}]), "classification and shared memory"),
]


@pytest.mark.parametrize(("message", "expected"), MALFORMED, ids=[expected[:60] for _, expected in MALFORMED])
def test_a_malformed_request_is_refused_with_one_clear_sentence(message, expected):
    with pytest.raises(ProtocolError) as caught:
        decode(message)
    assert expected in str(caught.value)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "length", "expected"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b'{"inputs": NaN}', None, "not valid JSON"),
        (b"\xff\xfe", None, "not valid JSON"),
        (b"[" * 50_000, None, "not valid JSON"),
        (b"{}", 3, "is 3, but the body has 2 bytes"),
        (b"", 0, "the raw body has 0 bytes, but FP32 of shape [1, 1, 2, 3] has 24"),
        (b"\x00" * 48, 0, "the raw body has 48 bytes, but FP32 of shape [1, 1, 2, 3] has 24"),
        (*binary(b"\x00" * 24, datatype="FP16"), "image has 24 bytes, but FP16 of shape [1, 1, 2, 3] has 12"),
        (*binary(b"\x00" * 24, datatype="UINT8"), "image has 24 bytes, but UINT8 of shape [1, 1, 2, 3] has 6"),
        (*binary(b"\x00" * 20), "image has 20 bytes, but FP32 of shape [1, 1, 2, 3] has 24"),
        (*binary(b"\x00" * 24, 20), "binary_data_size is 20, but 24 bytes follow the JSON"),
    ],
)
def test_a_malformed_body_is_refused_with_one_clear_sentence(body, length, expected):
    with pytest.raises(ProtocolError) as caught:
        decode_request(body, length, SERVED)
    assert expected in str(caught.value)


def test_bytes_after_the_json_without_a_binary_input_are_refused():
    body = json.dumps(request()).encode()
    with pytest.raises(ProtocolError, match="5 bytes follow the JSON, but no input has a binary_data_size"):
        decode_request(body + b"extra", len(body), SERVED)


def test_a_number_too_large_for_float32_becomes_infinite_and_fails_by_its_value_later():
    assert np.isinf(decode(image(data=[1e300, *VALUES[1:]])).images[0, 0, 0, 0])


def test_hidden_evidence_is_forbidden_and_the_message_says_how_to_see_it():
    with pytest.raises(ProtocolError, match="--expose-evidence") as caught:
        decode(request(outputs=[{"name": "votes"}]))
    assert caught.value.status == 403
    assert decode(request(outputs=[{"name": "votes"}]), OPEN).outputs == (("votes", False),)


@pytest.mark.parametrize("value", ["-1", "1.0", "", " 1", "0x10", "9" * 40, "\u0661"])
def test_a_header_length_that_is_no_number_is_refused(value):
    with pytest.raises(ProtocolError, match="Inference-Header-Content-Length"):
        decode_header_length(value)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", Verdicts.FIELDS)
def test_every_output_survives_json_and_binary_exactly(name, rows):
    expected = getattr(verdicts(rows), name)
    for as_binary in (False, True):
        wanted = InferRequest(images=IMAGES, outputs=((name, as_binary), ("label", as_binary)), id="7")
        body, length = encode_response(wanted, verdicts(rows), OPEN)
        head = json.loads(body[:length])
        output = head["outputs"][0]
        assert (head["model_name"], head["model_version"], head["id"]) == ("digits", "1", "7")
        assert (output["name"], output["shape"]) == (name, list(expected.shape))
        if as_binary:
            size = output["parameters"]["binary_data_size"]
            found = np.frombuffer(body[length : length + size], expected.dtype.newbyteorder("<"))
            assert len(body) == length + size + 8 * rows
        else:
            assert length is None
            found = np.array(output["data"]).astype(expected.dtype)
        np.testing.assert_array_equal(found.reshape(output["shape"]), expected)
