"""Compressed bodies: what they inflate to, up to a limit, and that nothing but the codec's own error ever leaves."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2ap_defend.serve.body import inflate
from s2ap_defend.serve.errors import ProtocolError, TooLargeError


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), (None, bytes)])
def test_a_compressed_body_inflates_to_itself_up_to_the_limit(name, pack):
    content = bytes(range(256)) * 4
    assert inflate(pack(content), name, limit_bytes=1024) == content


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_body_that_inflates_beyond_the_limit_is_refused(name, pack):
    bomb = pack(bytes(50_000_000))
    assert len(bomb) < 100_000
    with pytest.raises(TooLargeError, match="more than 1000 bytes"):
        inflate(bomb, name, limit_bytes=1000)


def test_cut_off_foreign_and_trailing_compressed_bytes_are_refused():
    packed = gzip.compress(b"hello")
    for body, message in [(packed[:-9], "cut off"), (b"hello", "is not gzip data"), (packed + b"x", "1 bytes follow")]:
        with pytest.raises(ProtocolError, match=message):
            inflate(body, "gzip", limit_bytes=100)
    with pytest.raises(ProtocolError, match="expected gzip or deflate") as caught:
        inflate(packed, "br", limit_bytes=100)
    assert caught.value.status == 415


@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate"]))
def test_inflate_raises_nothing_but_the_codecs_own_error(body, name):
    try:
        inflate(body, name, limit_bytes=100)
    except (ProtocolError, TooLargeError) as error:
        assert str(error)  # noqa: PT017
