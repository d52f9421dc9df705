"""Folders and zips of images, written by the tests with Pillow."""

import io
import logging
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import decode_image
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.data.source import resize

CLASSES = ("bird", "cat", "dog")


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(seed: int, size: tuple[int, int] = (6, 6), mode: str = "RGB", kind: str = "PNG") -> bytes:
    shape = (size[1], size[0], 3) if mode != "L" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    return png(image if image.mode == mode else image.convert(mode), kind)


def files(train: int = 8, test: int = 3, **options: object) -> dict[str, bytes]:
    """train/CLASS/N.png and test/CLASS/N.png, every image another."""
    seeds = iter(range(10_000))
    counts = {"train": train, "test": test}
    return {
        f"{split}/{name}/{number}.png": picture(next(seeds), **options)
        for split, count in counts.items()
        for name in CLASSES
        for number in range(count)
    }


def write_folder(root: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def load(*roots: Path, **settings: object) -> Splits:
    given = {"validation": 3, "fit": 3, "calibration": 3, **settings}
    return load_data(DataSettings(source="folder", root=roots[0] if len(roots) == 1 else roots, **given), 0)


def labelled(splits: Splits, *names: str) -> dict[bytes, str]:
    return {
        image.tobytes(): splits.classes[label]
        for name in names
        for image, label in zip(splits.parts[name].images, splits.parts[name].labels, strict=True)
    }


def expected(contents: dict[str, bytes], split: str, shape: tuple[int, int, int] = (3, 6, 6)) -> dict[bytes, str]:
    return {
        decode_image(content, shape).tobytes(): name.split("/")[1]
        for name, content in contents.items()
        if name.startswith(split)
    }


def without_prefix(contents: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): content for name, content in contents.items() if name.startswith(prefix)}


def test_a_folder_its_zip_and_a_zip_for_each_split_are_the_same_data(tmp_path: Path) -> None:
    contents = files()
    by_split = [{name: c for name, c in contents.items() if name.startswith(split)} for split in ("train", "test")]
    sources = [
        [write_folder(tmp_path / "folder", contents)],
        [write_zip(tmp_path / "all.zip", contents)],
        [write_zip(tmp_path / "wrapped.zip", {f"set/{name}": content for name, content in contents.items()})],
        [write_zip(tmp_path / f"set{n}.zip", part) for n, part in enumerate(by_split)],
        [write_zip(tmp_path / f"{s}-{s}.zip", p) for s, p in zip(("train", "test"), by_split, strict=True)],
        [write_zip(tmp_path / f"set-{s}.zip", without_prefix(contents, f"{s}/")) for s in ("train", "test")],
        [write_folder(tmp_path / "apart" / s, without_prefix(contents, f"{s}/")) for s in ("train", "test")],
        [write_zip(tmp_path / "train_part.zip", by_split[0]), write_folder(tmp_path / "rest", by_split[1])],
    ]
    results = [load(*roots) for roots in sources]
    assert len({splits.sha256() for splits in results}) == 1
    assert all(splits.classes == CLASSES for splits in results)
    assert labelled(results[0], "test") == expected(contents, "test")
    assert labelled(results[0], "train", "validation", "fit", "calibration") == expected(contents, "train")
    assert [splits.name for splits in results[:4]] == ["folder", "all", "wrapped", "set0+set1"]


def test_without_splits_the_test_part_is_cut(tmp_path: Path) -> None:
    contents = without_prefix(files(train=10), "train/")
    splits = load(write_folder(tmp_path / "flat", contents))
    assert len(splits.test) == 6
    assert np.bincount(splits.test.labels).tolist() == [2, 2, 2]
    everything = {f"all/{name}": content for name, content in contents.items()}
    assert labelled(splits, *splits.parts) == expected(everything, "all")


def test_classes_named_like_splits_are_classes(tmp_path: Path) -> None:
    names = {"bird": "train", "cat": "test", "dog": "boat"}
    contents = without_prefix(files(), "train/")
    flat = {f"{names[name.split('/')[0]]}/{name.split('/')[1]}": content for name, content in contents.items()}
    assert load(write_folder(tmp_path, flat)).classes == ("boat", "test", "train")


def test_val_is_the_test_part_where_there_is_no_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    contents = files()
    val = {name.replace("test/", "val/"): content for name, content in contents.items()}
    assert labelled(load(write_folder(tmp_path / "v", val)), "test") == expected(contents, "test")
    assert not caplog.messages
    both = {**contents, "val/cat/0.png": picture(99_999)}
    with caplog.at_level(logging.WARNING):
        splits = load(write_folder(tmp_path / "b", both))
    assert labelled(splits, "test") == expected(contents, "test")
    assert caplog.messages == [f"{tmp_path / 'b'}: the images in ['val'] are not used, those in test are the test part"]


def tiny_imagenet() -> dict[str, bytes]:
    """Tiny-ImageNet's layout with three classes, of which two have the same name, and one grey image."""
    numbers = ("n01443537", "n02129165", "n03126707")
    contents = {}
    lines = []
    for label, number in enumerate(numbers):
        for n in range(8):
            mode = "L" if n == 0 else "RGB"
            contents[f"train/{number}/images/{number}_{n}.JPEG"] = picture(10 * label + n, mode=mode, kind="JPEG")
        contents[f"train/{number}/{number}_boxes.txt"] = b"x\t0\t0\t5\t5\n"
        for n in range(2):
            name = f"val_{label}{n}.JPEG"
            contents[f"val/images/{name}"] = picture(1000 + 10 * label + n, kind="JPEG")
            lines.append(f"{name}\t{number}\t0\t0\t5\t5\n")
    contents["test/images/test_0.JPEG"] = picture(5000, kind="JPEG")
    contents["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    contents["wnids.txt"] = "".join(f"{number}\n" for number in reversed(numbers)).encode()
    contents["words.txt"] = (
        b"n00000001\tentity\nn01443537\tgoldfish, Carassius auratus\nn02129165\tcrane\nn03126707\tcrane\n"
    )
    return contents


@pytest.mark.parametrize("prefix", ["", "tiny-imagenet-200/"])
def test_tiny_imagenet_is_read_in_its_own_layout(tmp_path: Path, prefix: str) -> None:
    contents = tiny_imagenet()
    whole = {prefix + name: content for name, content in contents.items()}
    splits = load(write_zip(tmp_path / "tiny.zip", whole))
    assert splits.classes == ("goldfish, Carassius auratus", "crane (n02129165)", "crane (n03126707)")
    assert splits.image_shape == (3, 6, 6)
    assert labelled(splits, "test") == {
        decode_image(content, (3, 6, 6)).tobytes(): splits.classes[int(name.split("_")[1][0])]
        for name, content in contents.items()
        if name.startswith("val/images")
    }
    assert sum(len(part) for part in splits.parts.values()) == 24 + 6
    assert load(write_folder(tmp_path / "tiny", whole)).sha256() == splits.sha256()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val/val_annotations.txt": b"val_00.JPEG n01443537\n"}, "val_annotations.txt, line 1, is 'val_00.JPEG n01"),
        ({"val/val_annotations.txt": b"\xff\xfe"}, "is not UTF-8 text"),
        ({"val/images/val_99.JPEG": picture(9)}, r"val/images/val_99\.JPEG has no class in val/val_annotations\.txt"),
        ({"val/images/val_00.JPEG": None}, r"lists val_00\.JPEG, which is not in val/images"),
        ({"wnids.txt": b"n01443537\nn02129165\n"}, "has the class 'n03126707', which train lacks"),
        ({"wnids.txt": b"n01443537\nn02129165\nn03126707\nn9\n", "words.txt": b"n9\tfish"}, "no image of class 'fish'"),
    ],
)
def test_tiny_imagenet_whose_lists_disagree_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    contents = {name: content for name, content in {**tiny_imagenet(), **change}.items() if content is not None}
    with pytest.raises(RecipeError, match=message):
        load(write_folder(tmp_path, contents))


@pytest.mark.parametrize("kind", ["L PNG", "RGB PNG", "P PNG", "1 PNG", "L JPEG", "RGB JPEG", "CMYK JPEG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_decoded_as_the_runtime_does_when_it_serves(tmp_path: Path, kind: str, channels: int) -> None:
    mode, ending = kind.split()
    contents = files(mode=mode, kind=ending)
    splits = load(write_folder(tmp_path, contents), channels=channels)
    assert splits.image_shape == (channels, 6, 6)
    assert labelled(splits, "test") == expected(contents, "test", (channels, 6, 6))


def test_mixed_colours_are_converted_on_demand_only(tmp_path: Path) -> None:
    contents = {**files(), "train/cat/3.png": picture(7, mode="L")}
    root = write_zip(tmp_path / "d.zip", contents)
    with pytest.raises(
        RecipeError, match=r"d\.zip: train/cat/3\.png has grey pixels, .*0\.png colour pixels; set data\.ch"
    ):
        load(root)
    assert load(root, channels=3).image_shape == (3, 6, 6)
    assert load(root, channels=1).image_shape == (1, 6, 6)


def test_mixed_sizes_are_resized_on_demand_only(tmp_path: Path) -> None:
    wide = picture(7, size=(12, 8))
    contents = {**files(), "test/cat/3.png": wide}
    root = write_zip(tmp_path / "d.zip", contents)
    with pytest.raises(
        RecipeError, match=r"test/cat/3\.png is 12x8 pixels, .*train/bird/0\.png 6x6; set data\.image_size"
    ):
        load(root)
    splits = load(root, image_size=4)
    assert splits.image_shape == (3, 4, 4)
    by_pixels = labelled(splits, "test")
    assert by_pixels[resize(decode_image(wide, (3, 8, 12))[None], 4)[0].tobytes()] == "cat"
    sizes = {name: (3, 8, 12) if content == wide else (3, 6, 6) for name, content in contents.items()}
    assert by_pixels == {
        resize(decode_image(content, sizes[name])[None], 4)[0].tobytes(): name.split("/")[1]
        for name, content in contents.items()
        if name.startswith("test")
    }


def test_resizing_is_what_pillow_does_to_a_grey_level() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8))
    ours = resize(decode_image(png(image), (1, 64, 64))[None], 24)[0, 0] * 255
    theirs = np.asarray(image.resize((24, 24), Image.Resampling.BILINEAR), dtype=np.float32)
    assert np.abs(ours - theirs).max() <= 1.01  # Pillow rounds after each of its two passes


TRANSPARENT = png(Image.new("RGBA", (6, 6), (1, 2, 3, 4)))
KEYED = png(Image.new("P", (6, 6)), transparency=0)
DEEP = png(Image.fromarray(np.full((6, 6), 300, dtype=np.uint16)))
WHOLE = picture(1, size=(32, 32), kind="JPEG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TRANSPARENT, "has transparency; flatten it first"),
        (KEYED, "has transparency"),
        (DEEP, "has the pixel format I;16, expected 8-bit grey or RGB"),
        (b"", "is no PNG or JPEG image"),
        (b"GIF89a", "is no PNG or JPEG image"),
        (png(Image.new("RGB", (6, 6)), "GIF"), "is no PNG or JPEG image"),
        (WHOLE[: len(WHOLE) // 2], "is damaged|cannot be read"),
        (png(Image.new("1", (9000, 9000))), "has 9000x9000 pixels, the limit is"),
        (png(Image.new("1", (10000, 10000))), "cannot be read .*exceeds limit|has 10000x10000"),
        (png(Image.new("1", (20000, 20000))), "cannot be read .*exceeds limit|has 20000x20000"),
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
        ({**files(), "extra/fox/0.png": picture(1)}, "holds images in extra beside train"),
        ({**files(), "train/0.png": picture(1)}, r"train/0\.png lies in no class folder"),
        ({**files(), "train/cat/a/b.png": picture(1)}, r"train/cat/a/b\.png lies deeper than its class folder"),
        ({**files(test=0), "test/0.png": picture(1)}, "the images in test lie in no class folder"),
        ({**files(), "train/cat/x.webp": b"x"}, r"x\.webp is neither PNG nor JPEG; convert or remove it"),
        ({n: c for n, c in files().items() if n[:4] == "test"}, "holds test/CLASS/IMAGE but no train/CLASS/IMAGE"),
        ({n: c for n, c in files().items() if "cat" in n}, "has 1 class, a classifier needs two or more"),
        (dict.fromkeys(["a/b/c/d/e/f/g/h/i.txt"], b""), "lies more than 6 folders deep"),
    ],
)
def test_folders_that_are_no_data_set_are_refused(tmp_path: Path, contents: dict[str, bytes], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(write_folder(tmp_path, contents))
    assert "\n" not in str(caught.value)


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


def test_what_operating_systems_leave_behind_is_ignored(tmp_path: Path) -> None:
    contents = files()
    rubbish = {"__MACOSX/train/cat/._0.png": b"x", ".DS_Store": b"x", "train/cat/Thumbs.db": b"x", "README.md": b"x"}
    usual = load(write_zip(tmp_path / "a.zip", contents))
    assert load(write_zip(tmp_path / "b.zip", {**contents, **rubbish})).sha256() == usual.sha256()


def test_only_the_images_that_are_used_are_decoded(tmp_path: Path) -> None:
    contents = {name: b"no image" if name.startswith("test") else content for name, content in files(train=9).items()}
    contents["test/cat/0.png"] = contents["train/cat/0.png"]
    broken = {name for name, content in contents.items() if content == b"no image"}
    root = write_zip(tmp_path / "d.zip", contents)
    seeds = []
    for seed in range(40):
        settings = DataSettings(source="folder", root=root, test_limit=1, validation=1, fit=1, calibration=1)
        try:
            load_data(settings, seed)
            seeds.append(seed)
        except RecipeError as error:
            assert any(name in str(error) for name in broken)  # noqa: PT017
    assert seeds


def test_decoding_leaves_no_threads_and_tells_how_far_it_is(tmp_path: Path) -> None:
    before = threading.active_count()
    seen: list[tuple[int, int]] = []
    settings = DataSettings(source="folder", root=write_zip(tmp_path / "d.zip", files(train=60, test=30)))
    load_data(settings, 0, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (270, 270)
    assert len(seen) > 5
    assert threading.active_count() == before


def test_links_to_class_folders_are_followed(tmp_path: Path) -> None:
    contents = files()
    write_folder(tmp_path / "away", contents)
    for split in ("train", "test"):
        for name in CLASSES:
            (tmp_path / "links" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "links" / split / name).symlink_to(tmp_path / "away" / split / name)
    assert load(tmp_path / "links").sha256() == load(tmp_path / "away").sha256()
