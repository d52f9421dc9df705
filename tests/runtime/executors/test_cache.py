import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from s2ap_defend import DefendedClassifier
from s2ap_defend.executors.cache import StageCache
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Verdicts


@pytest.fixture
def path(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(golden / "version-4-abstaining.onnx", tmp_path / "model.onnx"))


def load(path: Path) -> DefendedClassifier:
    return DefendedClassifier.load(path, device="cpu", threads=1, executor="staged", cache=True)


def assert_same(found: Verdicts, expected: Verdicts) -> None:
    for name in Verdicts.FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_stages_that_were_kept_give_the_same_bits(path: Path, random_images: np.ndarray) -> None:
    images = random_images[:40]
    expected = DefendedClassifier.load(path, device="cpu", threads=1, executor="whole")(images)
    assert not path.with_name("model.onnx.stages").exists()
    assert_same(load(path)(images), expected)
    cache = StageCache(open_model_file(path), joined=True)
    members = [f"member_{i:03d}" for i in (1, 2, 3, 5)]  # the others share an engine
    assert list(cache.read()) == ["classifier", "purifier", "classifier_again", *members]
    assert_same(load(path)(images), expected)
    assert [one.name for one in cache.folder.parent.iterdir()] == [cache.folder.name]  # nothing else is left


def test_a_damaged_cache_is_made_anew(path: Path, random_images: np.ndarray) -> None:
    expected = load(path)(random_images[:8])
    cache = StageCache(open_model_file(path), joined=True)
    for damage in (b"", b"no graph"):
        (cache.folder / "member_001.onnx").write_bytes(damage)
        assert cache.read() == {}
        assert_same(load(path)(random_images[:8]), expected)
        assert len(cache.read()) == 7
    (cache.folder / "index.json").write_text("[]")
    assert cache.read() == {}


def test_another_file_of_the_same_name_has_a_cache_of_its_own(path: Path, golden: Path) -> None:
    load(path)
    before = StageCache(open_model_file(path), joined=True).folder
    shutil.copy(golden / "version-4.onnx", path)
    assert StageCache(open_model_file(path), joined=True).folder != before
    assert StageCache(open_model_file(path), joined=True).read() == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into every folder")
def test_a_folder_that_cannot_be_written_is_no_error(path: Path, random_images: np.ndarray) -> None:
    path.parent.chmod(0o500)
    try:
        assert len(load(path)(random_images[:3])) == 3
    finally:
        path.parent.chmod(0o700)


def test_a_file_in_the_place_of_the_cache_is_no_error(path: Path, random_images: np.ndarray) -> None:
    path.with_name("model.onnx.stages").write_text("")
    assert len(load(path)(random_images[:3])) == 3
