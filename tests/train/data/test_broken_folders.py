"""Folders and zips that cannot be used: each is refused in one line."""

import os
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from tests.train.toy_images import files, load, picture, png, write_folder, write_zip

from s2ap_defend.errors import RecipeError

TRANSPARENT = png(Image.new("RGBA", (6, 6), (1, 2, 3, 4)))


KEYED = png(Image.new("P", (6, 6)), transparency=0)


WHOLE = picture(1, size=(32, 32), kind="JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TRANSPARENT, "has transparency; put it on white with on_white"),
        (KEYED, "has transparency"),
        (b"", "is no PNG, JPEG, WebP or BMP image; replace or remove it"),
        (png(Image.new("RGB", (6, 6)), "GIF"), "is GIF, which is not read; convert it to PNG"),
        (WHOLE[: len(WHOLE) // 2], "is damaged|cannot be read"),
        (png(Image.new("1", (9000, 9000))), "has 9000x9000 pixels, the limit is"),
        (png(Image.new("1", (10000, 10000))), "has 10000x10000 pixels"),
        (png(Image.new("1", (20000, 20000))), "has 20000x20000 pixels"),
    ],
)
def test_images_that_cannot_be_used_are_named_with_their_zip(tmp_path: Path, content: bytes, message: str) -> None:
    root = write_zip(tmp_path / "d.zip", {**files(), "test/dog/1.png": content})
    with pytest.raises(RecipeError, match=message) as caught:
        load(root, image_size=32)
    assert str(caught.value).startswith(f"{root}: test/dog/1.png ")
    assert "\n" not in str(caught.value)


def test_every_cut_off_image_is_refused(tmp_path: Path) -> None:
    contents = files(size=(32, 32))
    for content in (WHOLE, picture(1, size=(32, 32))):
        for length in range(0, len(content) - 20, 101):
            root = write_zip(tmp_path / "d.zip", {**contents, "train/cat/0.png": content[:length]})
            with pytest.raises(RecipeError, match=r"train/cat/0\.png "):
                load(root)


def empty(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)


def test_a_class_without_images_is_refused(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "train", files())
    empty(train, "train/fox")
    with pytest.raises(RecipeError, match="has no image of class 'fox'"):
        load(train)
    test = write_folder(tmp_path / "test", files())
    for path in (test / "test" / "cat").iterdir():
        path.unlink()
    with pytest.raises(RecipeError, match="has no image in test/cat; add some or remove the folder"):
        load(test)
    with zipfile.ZipFile(write_zip(tmp_path / "d.zip", files()), "a") as archive:
        archive.mkdir("train/fox")
    with pytest.raises(RecipeError, match="has no image of class 'fox'"):
        load(tmp_path / "d.zip")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "holds no images; expected train/CLASS/IMAGE"),
        ({"notes.txt": b"x"}, "holds no images"),
        ({**files(), "test/fox/0.png": picture(1)}, "has the class 'fox' in test/ but not in train/"),
        ({**files(), "extra/fox/0.png": picture(1)}, "holds images in extra besides train"),
        ({**files(), "train/0.png": picture(1)}, r"train/0\.png lies in no class folder"),
        ({**files(), "train/cat/a/b.png": picture(1)}, r"train/cat/a/b\.png lies deeper than its class folder"),
        ({**files(test=0), "test/0.png": picture(1)}, "the images in test lie in no class folder"),
        (
            {**files(), "train/cat/x.tif": b"x", "train/cat/y.GIF": b"x", "train/cat/z.heic": b"x"},
            r"x\.tif and 2 more files are no PNG, JPEG, WebP or BMP images; convert or remove them",
        ),
        ({**files(), "train/cat/x.tif": b"x"}, r"x\.tif is no PNG, JPEG, WebP or BMP image; convert or"),
        ({n: c for n, c in files().items() if n[:4] == "test"}, "holds test/CLASS/IMAGE but no train/CLASS/IMAGE"),
        ({n: c for n, c in files().items() if "cat" in n}, "has 1 class, a classifier needs two or more"),
        (dict.fromkeys(["a/b/c/d/e/f/g/h/i.txt"], b""), "lies more than 6 folders deep"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(write_folder(tmp_path, contents))
    assert "\n" not in str(caught.value)


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, files())
    os.mkfifo(folder / "train" / "cat" / "pipe.png")
    with pytest.raises(RecipeError, match=r"pipe\.png is a pipe or device, not a file; take it out of the folder"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "C:/x.png", "a\\..\\x.png", "train/../../x.png", "train//x.png"]
)
def test_zips_with_names_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecipeError, match="which points outside or nowhere; pack the zip again"):
        load(write_zip(tmp_path / "d.zip", {**files(), name: picture(1)}))


def test_a_path_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    one, two = write_zip(tmp_path / "one.zip", files()), write_folder(tmp_path / "two", files())
    with pytest.raises(RecipeError, match=r"two.test.bird.0\.png is also .*one\.zip: test/bird/0\.png; give each"):
        load(one, two)
    with zipfile.ZipFile(one, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("train/cat/0.png", picture(1))
    with pytest.raises(RecipeError, match=r"train/cat/0\.png is in the zip twice"):
        load(one)


def test_zips_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none does not exist; put a folder or zip there with train/CLASS/IMAGE"):
        load(tmp_path / "none")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(RecipeError, match="is neither a folder nor a zip that can be read"):
        load(tmp_path / "text.zip")
    path = write_zip(tmp_path / "d.zip", files())
    content = bytearray(path.read_bytes())
    position = content.index(b"IDAT") + 30
    content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"d\.zip: train/bird/0\.png is damaged \(Bad CRC-32"):
        load(path)
    encrypted = bytearray(write_zip(tmp_path / "e.zip", files()).read_bytes())
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "e.zip").write_bytes(encrypted)
    with pytest.raises(RecipeError, match="is encrypted; pack the zip again without a password"):
        load(tmp_path / "e.zip")


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2ap_train.data.containers.LARGEST_FILE", 10_000)
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files(), "train/cat/0.png": bytes(20_000)}.items():
            archive.writestr(name, content)
    with pytest.raises(RecipeError, match=r"train/cat/0\.png unpacks to 20000 bytes, the limit of one file is 10000"):
        load(tmp_path / "d.zip")
    with pytest.raises(RecipeError, match="has more than 10000 bytes"):
        load(write_folder(tmp_path / "d", {**files(), "train/cat/0.png": bytes(20_000)}))
