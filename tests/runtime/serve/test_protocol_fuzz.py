"""The codec and bytes of any kind: nothing but its own error ever leaves it."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.serve.protocol_cases import IMAGES, NESTED, SERVED, SHAPE, VALUES

from s2ap_defend.serve.errors import ProtocolError
from s2ap_defend.serve.protocol import decode_request
from s2ap_defend.types import Verdicts

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def edited(**fields):
    """Objects in which every field is missing, as it should be, or anything."""
    return st.fixed_dictionaries({}, optional={key: good | JSON for key, good in fields.items()})


FLAGS = edited(binary_data=st.just(True), classification=st.just(1))
INPUTS = edited(
    name=st.just("image"),
    shape=st.just([1, *SHAPE]),
    datatype=st.sampled_from(["FP32", "FP16", "UINT8"]),
    data=st.just(VALUES) | st.just(NESTED),
    parameters=edited(binary_data_size=st.just(24)),
)
REQUESTS = edited(
    id=st.just("7"),
    inputs=st.lists(INPUTS, min_size=1, max_size=2),
    outputs=st.lists(edited(name=st.sampled_from(Verdicts.FIELDS), parameters=FLAGS), max_size=3),
    parameters=edited(timeout=st.just(5), priority=st.just(1), binary_data_output=st.just(True)),
)


def attempt(body, length):
    try:
        decoded = decode_request(body, length, SERVED)
    except ProtocolError as error:
        assert str(error)  # noqa: PT017
    else:
        assert decoded.images.shape[1:] == SHAPE
        assert decoded.images.dtype == np.float32


@given(st.binary(max_size=200), st.none() | st.integers(0, 250))
def test_no_bytes_raise_anything_but_the_codecs_own_error(body, length):
    attempt(body, length)


@given(REQUESTS | JSON, st.binary(max_size=8) | st.just(IMAGES.tobytes()), st.booleans())
def test_no_edited_request_raises_anything_but_the_codecs_own_error(message, tail, has_header):
    body = json.dumps(message).encode()
    attempt(body + tail, len(body) if has_header else None)
