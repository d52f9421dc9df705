"""classify: folders, names, bad images, sizes, and output that is never cut."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.image_files import CASES, COLOURS, GREYS, encoded

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands import classify
from s2ap_defend.commands.main import run
from s2ap_defend.images import Entry, read
from s2ap_defend.manifest import Manifest
from s2ap_defend.model_file import open_model_file, write_model_file

STEERING = "\x1b[31m\u202ea\r[bold]"


def rows(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> list[dict[str, object]]:
    assert run(["classify", *map(str, arguments), "--json", "--device", "cpu"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of folders: three images, a text, and what systems leave behind."""
    folder = tmp_path / "photos"
    for name in ("b.png", "a/d.PNG", "a/c/e.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(GREYS, "WEBP" if name.endswith("webp") else "PNG", lossless=True))
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "b.png").write_bytes(b"x")
    return folder


@pytest.fixture
def named(tiny_model_path: Path, tmp_path: Path) -> Path:
    """A file whose class names steer terminals."""
    file = open_model_file(tiny_model_path)
    classes = tuple(f"{STEERING}{i}" for i in range(len(file.manifest.classes)))
    data = file.manifest.model_dump() | {"classes": classes}
    write_model_file(file.proto, Manifest.model_validate(data), tmp_path / "named.onnx")
    return tmp_path / "named.onnx"


def test_folders_are_searched_to_the_bottom_and_give_what_their_files_give(
    tiny_model_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["b.png", "a/d.PNG", "a/c/e.webp"]
    found = rows(capsys, tiny_model_path, photos)
    assert [row["file"] for row in found] == [str(photos / name) for name in names]
    assert found == rows(capsys, tiny_model_path, *(photos / name for name in names))
    assert run(["classify", str(tiny_model_path), str(photos)]) == 0
    assert capsys.readouterr().err == f"left out, no images by their endings: {photos / 'notes.txt'}\n"


def test_a_pipe_in_a_folder_is_not_waited_for(
    tiny_model_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photos / "pipe.png")
    assert run(["classify", str(tiny_model_path), str(photos)]) != 0
    said = capsys.readouterr()
    assert f"{photos / 'pipe.png'} is a pipe or device, not a file" in "".join((said.out, said.err)).replace("\n", " ")


def test_a_folder_without_images_is_said_to_hold_none(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(["classify", str(tiny_model_path), str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {tmp_path / 'empty'} holds no images; expected files that end")


def test_bad_images_do_not_stop_the_others_and_are_counted_in_the_end(
    tiny_model_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a" / "bad.jpg").write_bytes(b"nothing")
    (photos / "moving.gif").write_bytes(CASES["GIF"].content)
    found = rows(capsys, tiny_model_path, photos, photos / "missing.png", code=2)
    assert [Path(str(row["file"])).name for row in found if "error" in row] == ["moving.gif", "bad.jpg", "missing.png"]
    assert sum("class" in row for row in found) == 3
    assert run(["classify", str(tiny_model_path), str(photos)]) == 2
    captured = capsys.readouterr()
    assert f"not classified: {photos / 'moving.gif'} is GIF, which is not read; convert it to PNG\n" in captured.err
    assert captured.err.splitlines()[-1] == ("Error: 2 could not be read, 3 classified; the reasons are above")
    assert [line.split()[0] for line in captured.out.splitlines()[1:]].count("not") == 2


def test_batches_of_any_size_give_the_same_answers_in_the_same_order(
    tiny_model_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    np.save(photos.parent / "five.npy", images)
    (photos / "a" / "bad.jpg").write_bytes(b"nothing")
    whole = rows(capsys, tiny_model_path, photos, photos.parent / "five.npy", code=2)
    monkeypatch.setattr(classify, "ROWS_PER_BATCH", 2)
    assert rows(capsys, tiny_model_path, photos, photos.parent / "five.npy", code=2) == whole
    monkeypatch.setattr(classify, "BATCH_BYTES", 1)
    assert rows(capsys, tiny_model_path, photos, photos.parent / "five.npy", code=2) == whole
    assert [row["index"] for row in whole[-5:]] == [0, 1, 2, 3, 4]
    labels = DefendedClassifier.load(tiny_model_path, device="cpu")(images).label
    assert [row["label"] for row in whole[-5:]] == labels.tolist()


def test_no_more_images_are_read_than_a_batch_holds() -> None:
    read_so_far: list[int] = []

    def entries() -> Iterator[Entry]:
        for i in range(1_000_000):
            read_so_far.append(i)
            yield Entry(Path(f"{i}.png"))

    assert len(next(classify._batches(entries(), (1, 8, 8)))) == len(read_so_far) == 256
    read_so_far.clear()
    assert len(next(classify._batches(entries(), (3, 1024, 1024)))) == len(read_so_far) == 5


def _written(path: Path) -> Path:
    path.write_bytes(encoded(GREYS))
    return path


@pytest.mark.parametrize("how", ["crop", "stretch"])
def test_images_of_another_size_are_resized_on_demand_alone(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(encoded(np.repeat(np.repeat(COLOURS, 3, axis=0), 2, axis=1)))
    assert run(["classify", str(tiny_model_path), str(path)]) == 2
    assert "is 16x24 pixels, the model takes 8x8; resize it as the training data was" in capsys.readouterr().err
    (row,) = rows(capsys, tiny_model_path, path, "--resize", how)
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    verdicts = classifier(read(path, classifier.input_shape, resize=how)[None])  # type: ignore[arg-type]
    assert row["votes"] == verdicts.votes[0].tolist()
    assert row["log_likelihood_ratio"] == verdicts.log_likelihood_ratio[0]


def test_images_are_resized_as_the_training_images_were_where_the_file_says_how(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = tmp_path / "large.png", open_model_file(tiny_model_path)
    path.write_bytes(encoded(np.repeat(COLOURS, 3, axis=0)))
    assert run(["classify", str(tiny_model_path), str(path), "--resize", "trained"]) == 2
    assert "does not say that its training images were resized; choose one of crop, s" in capsys.readouterr().err
    data = file.manifest.model_dump()
    data["input"]["resize"] = "stretch"
    write_model_file(file.proto, Manifest.model_validate(data), tmp_path / "stretched.onnx")
    found = [rows(capsys, tmp_path / "stretched.onnx", path, "--resize", how) for how in ("trained", "stretch", "pad")]
    assert found[0] == found[1] != found[2]


def test_transparent_images_are_put_on_white_on_demand_alone(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clear.png"
    path.write_bytes(CASES["RGBA"].content)
    assert run(["classify", str(tiny_model_path), str(path)]) == 2
    assert "has transparency; put it on white with on_white (--on-white)" in capsys.readouterr().err
    (row,) = rows(capsys, tiny_model_path, path, "--on-white")
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    assert row["label"] == classifier(read(path, classifier.input_shape, on_white=True)[None]).label[0]


def test_every_kind_of_file_is_classified_or_refused_as_the_decoder_says(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = DefendedClassifier.load(tiny_model_path, device="cpu")
    paths = {tmp_path / f"{i}.png": case for i, case in enumerate(CASES.values())}
    for path, case in paths.items():
        path.write_bytes(case.content)
    for path, row in zip(paths, rows(capsys, tiny_model_path, *paths, code=2), strict=True):
        assert row["file"] == str(path)
        shown = paths[path].shown
        if isinstance(shown, str):
            assert shown in str(row["error"])
        else:
            assert row["label"] == classifier(read(path, classifier.input_shape)[None]).label[0]


def test_names_of_files_and_classes_are_text_and_steer_no_terminal(
    named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / f"f\n{STEERING}"
    folder.mkdir()
    (folder / f"{STEERING}.png").write_bytes(encoded(GREYS))
    (folder / f"{STEERING}bad.png").write_bytes(b"nothing")
    (folder / f"{STEERING}.txt").write_bytes(b"nothing")
    (folder / os.fsdecode(b"\xff.png")).write_bytes(encoded(GREYS))
    for path in (folder, folder / f"{STEERING}bad.png"):
        assert run(["classify", str(named), str(path), "--device", "cpu"]) == 2
        captured = capsys.readouterr()
        assert not {"\x1b", "\u202e", "\r"} & {*captured.out, *captured.err}
        if path == folder:
            name = r"/f\n\x1b[31m\u202ea\r[bold]/\x1b[31m\u202ea\r[bold]bad.png"
            assert name in captured.out
            assert name in captured.err
    found = rows(capsys, named, folder, code=2)
    assert str(found[0]["file"]) == str(folder / f"{STEERING}.png")
    assert str(found[0]["class"]).startswith(STEERING)
    assert str(found[2]["file"]).endswith(r"\udcff.png")


def shown_on(tiny_model_path: Path, image: Path, width: int) -> str:
    """What classify prints on a terminal of this width."""
    command = [sys.executable, "-m", "s2ap_defend", "classify", str(tiny_model_path), str(image), "--device", "cpu"]
    reader, writer = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    done = subprocess.run(command, stdout=writer, env=environment, timeout=60, check=False)
    text = os.read(reader, 65536).decode().replace("\r\n", "\n")
    os.close(writer)
    os.close(reader)
    assert done.returncode == 0
    return re.sub(r"\x1b\[\d*m", "", text)


def test_neither_a_narrow_terminal_nor_a_pipe_loses_the_verdict_or_the_path(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("a folder with a long name " * 6) / "inner"
    folder.mkdir(parents=True)
    image = _written(folder / "image.png")
    texts = [shown_on(tiny_model_path, image, width) for width in (30, 80)]
    monkeypatch.setenv("COLUMNS", "80")
    assert run(["classify", str(tiny_model_path), str(image), "--device", "cpu"]) == 0
    texts.append(capsys.readouterr().out)
    for text in texts:
        heading, line = text.splitlines()
        assert heading.split() == ["verdict", "label", "classifier", "members", "disagree", "nats", "image"]
        assert line.split()[0] in {"clean", "adversarial", "undecided"}
        assert line.endswith(f"  {image}")
        assert line.index(str(image)) == heading.index("image")
