import io
import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.deferred import DeferredCommand
from s2ap_defend.commands.main import run


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail: exit code 2 and one line on standard error, which is returned."""
    assert run([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("Error: ")
    return captured.err


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    return path


def test_classify_prints_json_that_equals_the_library(
    tiny_model_path: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "three.npy", images)
    assert run(["classify", str(tiny_model_path), str(digit), str(tmp_path / "three.npy"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    verdicts = DefendedClassifier.load(tiny_model_path, device="cpu")(images)
    assert [Path(row["file"]).name for row in rows] == ["digit.png", "three.npy", "three.npy", "three.npy"]
    assert [row["label"] for row in rows[1:]] == verdicts.label.tolist()
    assert [row["adversarial"] for row in rows[1:]] == verdicts.adversarial.tolist()
    assert [row["votes"] for row in rows[1:]] == verdicts.votes.tolist()


def test_classify_prints_a_row_for_every_image(
    tiny_model_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["classify", str(tiny_model_path), str(digit), "--device", "cpu"]) == 0
    assert "digit.png" in capsys.readouterr().out


def test_classify_says_where_there_is_no_answer(
    abstaining_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    verdicts = DefendedClassifier.load(abstaining_model_path, device="cpu")(images)
    command = ["classify", str(abstaining_model_path), str(tmp_path / "images.npy"), "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    assert [row["abstained"] for row in json.loads(capsys.readouterr().out)] == verdicts.abstained.tolist()
    assert run(command) == 0
    text = capsys.readouterr().out
    assert text.count("no answer") == verdicts.abstained.sum()
    assert text.count("undecided") == (verdicts.abstained & ~verdicts.adversarial).sum() > 0
    assert text.count("adversarial") == verdicts.adversarial.sum() > 0


def test_a_model_without_defence_is_refused_by_every_command(
    tmp_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    answer = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", [value], [answer])
    plain = tmp_path / "plain.onnx"
    onnx.save_model(helper.make_model(graph), plain)
    for arguments in (["classify", plain, digit], ["inspect", plain], ["serve", plain, "--port", "0"]):
        assert "s2ap-defend harden" in refused(capsys, *arguments)


@pytest.mark.parametrize("command", ["classify", "inspect", "serve", "verify", "bench"])
def test_a_folder_and_a_missing_file_are_no_model_for_any_command(
    command: str, tmp_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [digit] if command == "classify" else []
    assert f"{tmp_path} is a folder; name a model file" in refused(capsys, command, tmp_path, *more)
    assert "none.onnx does not exist; name a model file" in refused(capsys, command, tmp_path / "none.onnx", *more)
    long = f"{'name=' * (command == 'serve')}{'x' * 5000}"  # otherwise its name would be that of the model as well
    assert "File name too long" in refused(capsys, command, long, *more)


def test_a_path_of_an_image_that_no_system_can_have_is_one_line(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot be used: File name too long; check the path" in refused(
        capsys, "classify", tiny_model_path, "x" * 5000
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("command", ["inspect", "classify", "classify --json"])
def test_an_output_on_a_full_disk_is_one_line(command: str, tiny_model_path: Path, digit: Path) -> None:
    name, *more = command.split()
    words = [name, str(tiny_model_path), *([str(digit)] if name == "classify" else []), *more]
    with Path("/dev/full").open("w") as full:
        program = [sys.executable, "-m", "s2ap_defend", *words]
        ran = subprocess.run(program, check=False, stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 2
    said = ran.stderr.decode()
    assert said == "Error: the output cannot be written: No space left on device; make room, then run the same " + (
        "command again\n"
    )


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "nothing", "nothing cannot be read: No such file or directory"),
        (b"\x89PNG nonsense", "x.png", "no PNG, JPEG, WebP or BMP image"),
        (None, "x.png", "cannot be read"),
        (np.zeros((1, 1, 8, 8)), "x.npy", "float64"),
        (np.zeros((1, 3, 8, 8), np.float32), "x.npy", "expected float32 [N, 1, 8, 8]"),
        (np.zeros((0, 1, 8, 8), np.float32), "x.npy", "empty"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "x.npy", "NaN"),
        (np.full((1, 1, 8, 8), 2.0, np.float32), "x.npy", "[0, 1]"),
    ],
)
def test_bad_images_are_refused_with_one_line(
    tiny_model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | np.ndarray | None,
    name: str,
    message: str,
) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content)
        content = buffer.getvalue()
    if content is not None:
        path.write_bytes(content)
    assert message in refused(capsys, "classify", tiny_model_path, path)


def test_unknown_commands_and_options_suggest_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'classify'?" in refused(capsys, "clasify")
    assert "--jsn" in refused(capsys, "inspect", "x.onnx", "--jsn")


def test_a_port_in_use_is_named(tiny_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, "serve", tiny_model_path, "--port", str(port), "--device", "cpu")


def test_an_address_that_others_reach_needs_insecure(tiny_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--insecure" in refused(capsys, "serve", tiny_model_path, "--host", "0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("classify", "Error: interrupted\n"),
        ("harden", "Error: interrupted; what was finished is stored, run the same command again to go on\n"),
    ],
)
def test_what_is_interrupted_says_whether_it_goes_on(
    command: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DeferredCommand, "load", interrupted)
    assert run([command, "photo.png"]) == 2
    assert capsys.readouterr().err == said
