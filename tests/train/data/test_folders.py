"""Folders and zips of images: layouts, splits, decoding."""

import logging
import threading
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from tests.train.toy_images import (
    CLASSES,
    expected,
    files,
    labelled,
    load,
    picture,
    without_prefix,
    write_folder,
    write_zip,
)

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import read, resize
from s2ap_defend.types import Resize
from s2ap_train.data import DataSettings, load_data


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
    assert labelled(splits, *splits.by_name) == expected(everything, "all")


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
        RecipeError,
        match=r"d\.zip: train/cat/3\.png has grey pixels, .*0\.png colour pixels; convert all with --set data\.ch",
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
    assert by_pixels[resize(read(wide, (3, 8, 12))[None], (4, 4))[0].tobytes()] == "cat"
    sizes = {name: (3, 8, 12) if content == wide else (3, 6, 6) for name, content in contents.items()}
    assert by_pixels == {
        resize(read(content, sizes[name])[None], (4, 4))[0].tobytes(): name.split("/")[1]
        for name, content in contents.items()
        if name.startswith("test")
    }


@pytest.mark.parametrize("how", get_args(Resize))
def test_mixed_sizes_become_rectangles_as_the_policy_says(tmp_path: Path, how: Resize) -> None:
    wide, tall = picture(7, size=(12, 8)), picture(8, size=(5, 9))
    contents = {**files(), "test/cat/3.png": wide, "test/dog/4.png": tall}
    splits = load(write_zip(tmp_path / "d.zip", contents), image_size=(4, 7), resize=how)
    assert (splits.image_shape, splits.resize) == ((3, 4, 7), how)
    found = labelled(splits, "test")
    assert found[resize(read(wide, (3, 8, 12)), (4, 7), how).tobytes()] == "cat"
    assert found[resize(read(tall, (3, 9, 5)), (4, 7), how).tobytes()] == "dog"


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
