"""Keys: their file, the command that makes one, and the token bucket."""

import math
import re
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.serve.allowance import Allowance
from s2ap_defend.serve.errors import RateLimitError, TooLargeError
from s2ap_defend.serve.keys import hash_key, read_keys

SECRET = "s2ap_" + "x" * 43
HASH = "ab" * 32
ENTRY = f'[[key]]\nname = "camera"\nsha256 = "{HASH}"\nrights = ["infer"]\n'


def test_a_key_that_was_made_is_read_again_by_its_hash_and_is_nowhere_in_the_file(tmp_path, capsys):
    path = tmp_path / "keys.toml"
    made = []
    for name, options in (("camera.1", ()), ("lab", ("--rights", "evidence, infer", *LIMITS))):
        assert run(["serve-key", name, "--keys", str(path), *options]) == 0
        printed = capsys.readouterr()
        assert printed.out == f"added {name} to {path}\n"
        made.append(printed.err.splitlines()[-1])
    camera, lab = read_keys(path)
    assert [hash_key(key.encode()) for key in made] == [camera.sha256, lab.sha256]
    assert (camera.name, camera.rights, camera.images_per_second) == ("camera.1", {"infer"}, None)
    assert (lab.rights, lab.images_per_second, lab.burst) == ({"infer", "evidence"}, 2.5, 64)
    assert not [key for key in made if key in path.read_text()]
    assert all(re.fullmatch(r"s2ap_[A-Za-z0-9_-]{43}", key) for key in made)


LIMITS = ("--images-per-second", "2.5", "--burst", "64")


def changed(**fields) -> str:
    entry = {**tomllib.loads(ENTRY)["key"][0], **fields}
    written = {key: str(value).lower() if value is True else repr(value) for key, value in entry.items()}
    return "[[key]]\n" + "".join(f"{key} = {value}\n" for key, value in written.items())


BAD = [
    ("", "has no [[key]] table; `s2ap-defend serve-key NAME` prints one"),
    ("key = 3", "has no [[key]] table"),
    ("[[keys]]\nname = 'a'", "has 'keys', but only [[key]] tables are read"),
    (f"{ENTRY}nam", "is no TOML: Expected '=' after a key in a key/value pair (at"),
    (SECRET, "is no TOML: "),
    (changed(name=""), "[[key]] 1: name must have 1 to 64 letters"),
    (changed(name="a\nb"), "[[key]] 1: name must have"),
    (changed(sha256=SECRET), "[[key]] 1 (camera): sha256 must be the SHA-256 of the key, 64 hexadecimal digits"),
    (changed(rights=[]), "[[key]] 1 (camera): rights must be a list of some of infer, evidence, admin"),
    (changed(rights="infer"), "rights must be a list"),
    (changed(rights=["root"]), "rights must be a list"),
    (changed(rights=["evidence"]), "the right evidence is about verdicts, so it needs the right infer; add it"),
    (changed(right=["infer"]), "[[key]] 1 (camera): there is no 'right'; did you mean 'rights'?"),
    (changed(owner="me"), "there is no 'owner'; choose from name, sha256, rights"),
    (changed(images_per_second=3.0), "images_per_second and burst need each other"),
    (changed(images_per_second=-1, burst=3), "images_per_second must be a number above 0"),
    (changed(images_per_second=math.inf, burst=3), "images_per_second must be a number above 0"),
    (changed(images_per_second=True, burst=3), "images_per_second must be a number above 0"),
    (changed(images_per_second=1, burst=0.5), "burst must be a whole number of images, 1 or more"),
    (ENTRY + changed(sha256="cd" * 32), "[[key]] 2 (camera): it has the name of [[key]] 1; remove one"),
    (ENTRY + changed(name="other"), "[[key]] 2 (other): it has the sha256 of [[key]] 1; remove one"),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_a_bad_file_is_one_line_that_says_where_and_never_what_may_be_a_key(
    tmp_path, capsys, tiny_model_path, text, said
):
    path = tmp_path / "keys.toml"
    path.write_text(text)
    assert run(["serve", str(tiny_model_path), "--keys", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert SECRET not in error


def test_a_file_that_is_not_there_or_no_text_is_said(tmp_path):
    with pytest.raises(RecipeError, match=r"the keys file .* cannot be read \(No such file"):
        read_keys(tmp_path / "none.toml")
    (tmp_path / "keys.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match="is no TOML"):
        read_keys(tmp_path / "keys.toml")


def test_a_key_is_added_behind_what_a_file_has_or_not_at_all(tmp_path, capsys):
    path = tmp_path / "keys.toml"
    path.write_text(f"# ours\n{ENTRY}")
    assert run(["serve-key", "camera", "--keys", str(path)]) == 2
    assert "has a key called camera; choose another name, or remove it" in capsys.readouterr().err
    assert path.read_text() == f"# ours\n{ENTRY}"
    assert run(["serve-key", "other"]) == 0
    assert capsys.readouterr().out.startswith('[[key]]\nname = "other"\nsha256 = "')
    assert run(["serve-key", "other", "--keys", str(path)]) == 0
    assert path.read_text().startswith(f'# ours\n{ENTRY}\n[[key]]\nname = "other"\n')
    assert [key.name for key in read_keys(path)] == ["camera", "other"]
    assert run(["serve-key", "third", "--keys", str(tmp_path)]) == 2
    path.write_text("[[key]")
    assert run(["serve-key", "third", "--keys", str(path)]) == 2
    assert path.read_text() == "[[key]"


def test_the_command_refuses_what_the_file_could_not_hold(capsys):
    assert run(["serve-key", "a b"]) == 2
    assert "name must have 1 to 64 letters" in capsys.readouterr().err
    assert run(["serve-key", "a", "--rights", "infer,all"]) == 2
    assert "serve-key (a): rights must be a list of some of infer, evidence, admin" in capsys.readouterr().err


@given(st.floats(0.1, 100), st.integers(1, 50), st.lists(st.tuples(st.floats(0, 5), st.integers(1, 60)), max_size=40))
def test_a_key_never_asks_more_than_its_burst_and_its_rate_allow_and_waits_no_longer_than_said(rate, burst, requests):
    now = 0.0
    allowance = Allowance(rate, burst, clock=lambda: now)
    taken: list[tuple[float, int]] = []
    for pause_s, images in requests:
        now += pause_s
        try:
            allowance.check(images)
        except TooLargeError:
            assert images > burst
            continue
        except RateLimitError as error:
            assert images <= burst
            now += int(error.headers["retry-after"])
            allowance.check(images)  # it may now
        allowance.take(images)
        taken.append((now, images))
    for i, (start, _) in enumerate(taken):
        for j in range(i, len(taken)):
            asked = sum(images for _, images in taken[i : j + 1])
            assert asked <= burst + rate * (taken[j][0] - start) + 1e-6
