"""Files are signed with a private key, and the public one finds every other file and signature."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.runtime.signing_keys import write_key

from s2ap_defend.commands.main import run

pytest.importorskip("model_signing", reason="needs the extra [signing]")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_key(tmp_path_factory.mktemp("keys"), "own")


@pytest.fixture
def signed(answered: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    """A model file and its signature in one folder."""
    model = Path(shutil.copy(answered, tmp_path / "model.onnx"))
    assert run(["sign", str(model), "--key", str(keys[0])]) == 0
    return model


def checks(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> list[tuple[str, str, str]]:
    capsys.readouterr()
    assert run(["verify", *map(str, arguments), "--json"]) == code
    return [(one["name"], one["state"], one["detail"]) for one in json.loads(capsys.readouterr().out)["checks"]]


def test_a_signed_file_verifies_under_another_name_too(
    signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert sorted(path.name for path in signed.parent.iterdir()) == ["model.onnx", "model.onnx.sig"]
    first, *others = checks(capsys, 0, signed, "--key", keys[1])
    assert first == ("signature", "passed", f"the file that the owner of {keys[1]} signed")
    assert {state for _, state, _ in others} == {"passed"}
    renamed = signed.rename(signed.with_name("renamed.onnx"))
    assert checks(capsys, 0, renamed, "--key", keys[1], "--signature", signed.with_name("model.onnx.sig"))


def test_a_signature_that_nobody_asks_for_is_named(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *_ = checks(capsys, 0, signed)
    assert first == ("signature", "skipped", f"{signed}.sig lies there; --key PUBLIC.pem checks it")


def test_another_file_with_sound_hashes_is_not_opened(
    signed: Path, tiny_model_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(tiny_model_path, signed)
    assert checks(capsys, 0, signed)
    first, rest = checks(capsys, 1, signed, "--key", keys[1])
    assert first[1] == "failed"
    assert "model.onnx is not the file that was signed; do not use the file" in first[2]
    assert rest == ("everything else", "skipped", "a file of unknown origin is not opened")


def test_a_signature_of_somebody_else_is_found(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, public = write_key(tmp_path, "other")
    first, _ = checks(capsys, 1, signed, "--key", public)
    assert first[1] == "failed"
    assert f"model.onnx.sig is no signature by the key of {public}; do not use the file" in first[2]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"mediaType": 3}'])
def test_what_is_no_signature_is_found(
    text: str, signed: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    signed.with_name("model.onnx.sig").write_text(text)
    first, _ = checks(capsys, 1, signed, "--key", keys[1])
    assert first[1] == "failed"
    assert "model.onnx.sig is no signature by the key of" in first[2]


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run([*map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_keys_and_places_that_cannot_be_used_are_said_in_one_line(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    locked, _ = write_key(tmp_path, "locked", password=b"secret")
    assert "public.pem is no private key that can be used" in refused(capsys, "sign", signed, "--key", public)
    assert "without a password: openssl" in refused(capsys, "sign", signed, "--key", locked)
    edwards = write_key(tmp_path, "edwards", other=True)
    for key, command in zip(edwards, ("sign", "verify"), strict=True):
        assert "key that can be used (it is of no elliptic curve)" in refused(capsys, command, signed, "--key", key)
    assert "the private key none.pem does not exist; openssl" in refused(capsys, "sign", signed, "--key", "none.pem")
    assert "would overwrite" in refused(capsys, "sign", signed, "--key", private, "-o", signed)
    assert "own.pem is no public key that can be used" in refused(capsys, "verify", signed, "--key", private)
    assert "the public key none.pem does not exist" in refused(capsys, "verify", signed, "--key", "none.pem")
    assert "--signature needs --key" in refused(capsys, "verify", signed, "--signature", "x.sig")
    signed.with_name("model.onnx.sig").unlink()
    assert "the signature" in refused(capsys, "verify", signed, "--key", public)
    assert "is an ONNX model without a defence" in refused(capsys, "sign", plain(tmp_path), "--key", private)
    assert not signed.with_name("model.onnx.sig").exists()


def plain(folder: Path) -> Path:
    from onnx import TensorProto, helper, save_model

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", [value], [answer])
    save_model(helper.make_model(graph), folder / "plain.onnx")
    return folder / "plain.onnx"


def test_without_the_extra_the_message_names_it(signed: Path, keys: tuple[Path, Path]) -> None:
    program = (
        "import sys; sys.modules['model_signing'] = None\n"
        "from s2ap_defend.commands.main import run\n"
        f"sys.exit(run(['verify', {str(signed)!r}, '--key', {str(keys[1])!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "of the extra [signing]; pip install '.[signing]' in a checkout" in done.stderr
