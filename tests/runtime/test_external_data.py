"""Weights beside the model file: read where they are a file of their own, refused with the true reason elsewhere."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from s2ap_defend import DefendedClassifier, ModelFileError
from s2ap_defend.model_file import open_model_file, write_model_file

NAMES = ("model.onnx", "model.onnx.data")


@pytest.fixture
def apart(tiny_model_path: Path, tmp_path: Path) -> Path:
    """The tiny file with its weights beside it."""
    opened = open_model_file(tiny_model_path)
    path = tmp_path / "apart" / "model.onnx"
    write_model_file(opened.proto, opened.manifest, path, external_data=True)
    return path


def cached(apart: Path, *links: str) -> Path:
    """The two files as a Hugging Face cache lays them out: `links` of them lie among the blobs."""
    root = apart.parents[1] / "models--someone--model"
    snapshot, blobs = root / "snapshots" / "0f1e2d", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, name in enumerate(NAMES):
        content = apart.with_name(name).read_bytes()
        if name in links:
            (blobs / f"{i:064x}").write_bytes(content)
            (snapshot / name).symlink_to(Path("..", "..", "blobs", f"{i:064x}"))
        else:
            (snapshot / name).write_bytes(content)
    return snapshot / "model.onnx"


def runs_as(path: Path, other: Path, images: np.ndarray) -> None:
    found, expected = (DefendedClassifier.load(p, device="cpu")(images).votes for p in (path, other))
    assert np.array_equal(found, expected)


def test_a_model_that_is_a_link_is_read_with_the_data_beside_the_link(apart: Path, random_images: np.ndarray) -> None:
    runs_as(cached(apart, "model.onnx"), apart, random_images[:8])


def test_a_model_that_is_a_link_and_holds_its_weights_is_read(
    tiny_model_path: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    (tmp_path / "link.onnx").symlink_to(tiny_model_path)
    runs_as(tmp_path / "link.onnx", tiny_model_path, random_images[:8])


def test_a_folder_that_is_a_link_is_followed(apart: Path, random_images: np.ndarray) -> None:
    linked = apart.parents[1] / "linked"
    linked.symlink_to(apart.parent)
    runs_as(linked / "model.onnx", apart, random_images[:8])


@pytest.mark.parametrize("links", [("model.onnx.data",), NAMES])
def test_data_that_is_a_link_is_refused_with_a_copy_that_works(
    links: tuple[str, ...], apart: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    path = cached(apart, *links)
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data is a symbolic link, as in a Hugging Face") as caught:
        open_model_file(path)
    command = re.search(r"\((cp -L .*) FOLDER\)", str(caught.value))
    assert command is not None
    (tmp_path / "copied").mkdir()
    assert os.system(f"{command.group(1)} {tmp_path / 'copied'}") == 0  # noqa: S605
    runs_as(tmp_path / "copied" / "model.onnx", apart, random_images[:8])


def test_data_with_another_hard_link_is_refused(apart: Path) -> None:
    os.link(apart.with_name("model.onnx.data"), apart.with_name("other"))
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data has more than one hard link.*copy both files"):
        open_model_file(apart)


def test_data_that_is_not_there_is_named(apart: Path) -> None:
    data = apart.with_name("model.onnx.data")
    data.unlink()
    for make in (lambda: None, data.mkdir):
        make()
        with pytest.raises(ModelFileError, match=r"model\.onnx\.data, the external data of model\.onnx, is not there"):
            open_model_file(apart)


def test_data_that_is_cut_or_changed_is_refused(apart: Path) -> None:
    data = apart.with_name("model.onnx.data")
    content = data.read_bytes()
    data.write_bytes(content[:-4])
    with pytest.raises(ModelFileError, match=r"the external data of .*model\.onnx cannot be read: .*exceeds"):
        open_model_file(apart)
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="was changed after it was written: its weights have SHA-256"):
        open_model_file(apart)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "folder/data", "", ".", "..", "a\0b"])
def test_a_location_that_is_no_bare_name_is_refused(location: str, apart: Path) -> None:
    for folder in (apart.parents[1], apart.parent / "folder"):
        folder.mkdir(exist_ok=True)
        for name in ("secret", "data"):
            (folder / name).write_bytes(apart.with_name("model.onnx.data").read_bytes())
    proto = onnx.load(apart, load_external_data=False)
    for entry in (e for t in proto.graph.initializer if uses_external_data(t) for e in t.external_data):
        if entry.key == "location":
            entry.value = location
    apart.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=re.escape(f"its external data is at {location!r}, expected the bare")):
        open_model_file(apart)


def test_the_size_is_that_of_both_files(apart: Path) -> None:
    sizes = [apart.with_name(name).stat().st_size for name in NAMES]
    assert open_model_file(apart).size_bytes == sum(sizes)
    assert sizes[1] > 100_000
