"""Files in bodies: forms and JSON in base64, whatever the bytes are."""

import base64
import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2ap_defend.errors import InputError
from s2ap_defend.serve import json_strings, multipart
from s2ap_defend.serve.errors import ProtocolError, TooLargeError
from s2ap_defend.serve.json_strings import LongStrings
from s2ap_defend.serve.multipart import form_parts

TYPE = 'multipart/form-data; charset=utf-8; boundary="b\'1"'


def parts_of(body: bytes) -> list[tuple[str, bytes]]:
    return [(name, body[start:stop]) for name, start, stop in form_parts(body, TYPE)]


@given(st.lists(st.binary(max_size=40)), st.binary(max_size=5))
def test_the_contents_of_a_form_are_what_was_put_in(contents, preamble):
    body = (preamble + b"\r\n") * bool(preamble)
    for i, content in enumerate(contents):
        body += b'--b\'1 \t\r\ncontent-DISPOSITION: form-data; name="%d"\r\nX: y\r\n\r\n%b\r\n' % (i, content)
    body += b"--b'1--ignored"
    assert parts_of(body) == [(str(i), content) for i, content in enumerate(contents)]


@pytest.mark.parametrize("at", range(-20, 21))
def test_a_delimiter_is_found_wherever_a_search_ends(at):
    content = b"\r\n-" * 200_000
    content = content[: 2 * multipart.PIECE_BYTES + at]
    body = b"--b'1\r\nContent-Disposition: form-data; name=a\r\n\r\n" + content + b"\r\n--b'1--"
    assert parts_of(body) == [("a", content)]


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('form-data; name="a"; filename="b.png"', "b.png"),
        ('form-data; filename="b;c.png"; name="a"', "b;c.png"),
        (r'form-data; name="a"; filename="q\"\\.png"', 'q"\\.png'),
        (r'form-data; name="a"; filename="C:\new.png"', r"C:\new.png"),
        ("form-data;name=a;FileName=b.png", "b.png"),
        ('form-data; name="x; filename=evil"', "x; filename=evil"),
        ('form-data; name="a"; filename="ü.png"', "ü.png"),
        ("form-data", ""),
    ],
)
def test_names_of_files_are_read_as_clients_write_them(disposition, name):
    body = f"--b'1\r\nContent-Disposition: {disposition}\r\n\r\nx\r\n--b'1--".encode()
    assert parts_of(body) == [(name, b"x")]


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_bytes_raise_anything_but_a_clean_error(noise, at):
    form = b"--b'1\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--b'1--"
    for body in (noise, form[:at] + noise + form[at:], form[:at]):
        with contextlib.suppress(ProtocolError):
            parts_of(body)


def test_a_form_of_many_empty_fields_is_refused():
    part = b'--b\'1\r\nContent-Disposition: form-data; name=a; filename=""\r\n\r\n\r\n'
    assert parts_of(part * 10_000 + b"--b'1--") == []
    with pytest.raises(TooLargeError, match="over 10000 parts"):
        parts_of(part * 10_001 + b"--b'1--")


@pytest.mark.parametrize("size", [0, 1, 190, 193, 3 * json_strings.PIECE_BYTES // 4, json_strings.PIECE_BYTES])
@pytest.mark.parametrize("slash", ["/", "\\/"])
def test_base64_of_any_length_is_read_also_with_escaped_slashes(size, slash):
    content = np.random.default_rng(size).bytes(size)
    text = json.dumps({"é\\": '"\\', "b64": base64.b64encode(content).decode(), "z": []}).replace("/", slash)
    strings = LongStrings(text.encode())
    assert strings.decode(strings.parsed["b64"]) == content
    assert (strings.parsed["é\\"], strings.parsed["z"]) == ('"\\', [])


@pytest.mark.parametrize("spoil", ["!", "\\n", "=", "ü", "\\u0041", "\\\\"])
@pytest.mark.parametrize("at", [0, 4, 400, json_strings.PIECE_BYTES - 1, json_strings.PIECE_BYTES])
def test_what_is_no_base64_is_refused_wherever_it_is(spoil, at):
    data = "QUJD" * (json_strings.PIECE_BYTES // 2)
    strings = LongStrings(('{"b64": "%s"}' % (data[:at] + spoil + data[at:])).encode())
    with pytest.raises(InputError, match="b64 is no base64"):
        strings.decode(strings.parsed["b64"])


def test_padding_ends_base64():
    data = "QUJD" * (json_strings.PIECE_BYTES // 4 - 1) + "QQ==" + "QUJD" * 100
    strings = LongStrings(json.dumps({"b64": data}).encode())
    with pytest.raises(InputError, match="goes on after its padding"):
        strings.decode(strings.parsed["b64"])


@given(st.lists(st.text(st.sampled_from('\\"a,[{\u00fc'), max_size=8), max_size=8))
def test_json_without_long_strings_is_parsed_as_it_is(value):
    text = json.dumps(value).encode()
    if b"\\u0000" not in text:
        assert LongStrings(text).parsed == json.loads(text)
