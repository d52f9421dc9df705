"""Weights next to the model file: read where they are a file of their own, refused with the true reason elsewhere."""

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from s2ap_defend import DefendedClassifier, ModelFileError, Verdicts
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file, weights_sha256, write_model_file
from tests.runtime.signing_keys import write_key

MODEL, DATA = "model", "data"


@pytest.fixture
def apart(tiny_model_path: Path, tmp_path: Path) -> Path:
    """The tiny file with its weights next to it."""
    opened = open_model_file(tiny_model_path)
    path = tmp_path / "apart" / "model.onnx"
    write_model_file(opened.proto, opened.manifest, path, external_data=True)
    return path


def data_of(apart: Path) -> Path:
    """The file of its weights."""
    (name,) = open_model_file(apart).data_locations
    return apart.with_name(name)


def cached(apart: Path, *links: str) -> Path:
    """The two files as a Hugging Face cache lays them out: `links` of them lie among the blobs."""
    root = apart.parents[1] / "models--someone--model"
    snapshot, blobs = root / "snapshots" / "0f1e2d", root / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, (which, name) in enumerate({MODEL: apart.name, DATA: data_of(apart).name}.items()):
        content = apart.with_name(name).read_bytes()
        if which in links:
            (blobs / f"{i:064x}").write_bytes(content)
            (snapshot / name).symlink_to(Path("..", "..", "blobs", f"{i:064x}"))
        else:
            (snapshot / name).write_bytes(content)
    return snapshot / "model.onnx"


def runs_as(path: Path, other: Path, images: np.ndarray) -> None:
    found, expected = (DefendedClassifier.load(p, device="cpu", executor="whole")(images).votes for p in (path, other))
    assert np.array_equal(found, expected)


def test_a_model_that_is_a_link_is_read_with_the_data_beside_the_link(apart: Path, random_images: np.ndarray) -> None:
    runs_as(cached(apart, MODEL), apart, random_images[:4])


def test_a_model_that_is_a_link_and_holds_its_weights_is_read(
    tiny_model_path: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    (tmp_path / "link.onnx").symlink_to(tiny_model_path)
    runs_as(tmp_path / "link.onnx", tiny_model_path, random_images[:4])


def test_a_folder_that_is_a_link_is_followed(apart: Path, random_images: np.ndarray) -> None:
    linked = apart.parents[1] / "linked"
    linked.symlink_to(apart.parent)
    runs_as(linked / "model.onnx", apart, random_images[:4])


@pytest.mark.parametrize("links", [(DATA,), (MODEL, DATA)])
def test_data_that_is_a_link_is_refused_with_a_copy_that_works(
    links: tuple[str, ...], apart: Path, tmp_path: Path, random_images: np.ndarray
) -> None:
    path = cached(apart, *links)
    with pytest.raises(ModelFileError, match=r"\.data is a symbolic link, as in a Hugging Face") as caught:
        open_model_file(path)
    command = re.search(r"\((cp -L .*) FOLDER\)", str(caught.value))
    assert command is not None
    (tmp_path / "copied").mkdir()
    assert os.system(f"{command.group(1)} {tmp_path / 'copied'}") == 0  # noqa: S605
    runs_as(tmp_path / "copied" / "model.onnx", apart, random_images[:4])


def test_data_with_another_hard_link_is_refused(apart: Path) -> None:
    os.link(data_of(apart), apart.with_name("other"))
    with pytest.raises(ModelFileError, match=r"model\.onnx\.\w+\.data has more than one hard link.*copy both files"):
        open_model_file(apart)


def test_data_that_is_not_there_is_named(apart: Path) -> None:
    data = data_of(apart)
    data.unlink()
    for make in (lambda: None, data.mkdir):
        make()
        with pytest.raises(ModelFileError, match=r"\.data, the external data of model\.onnx, is not there"):
            open_model_file(apart)


def test_data_that_is_cut_or_changed_is_refused(apart: Path) -> None:
    data = data_of(apart)
    content = data.read_bytes()
    data.write_bytes(content[:-4])
    with pytest.raises(ModelFileError, match=r"the external data of .*model\.onnx cannot be read: .*exceeds"):
        open_model_file(apart)
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFileError, match="was changed after it was written: its weights have SHA-256"):
        open_model_file(apart)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "folder/data", "", ".", "..", "a\0b"])
def test_a_location_that_is_no_bare_name_is_refused(location: str, apart: Path) -> None:
    data = data_of(apart).read_bytes()
    for folder in (apart.parents[1], apart.parent / "folder"):
        folder.mkdir(exist_ok=True)
        for name in ("secret", "data"):
            (folder / name).write_bytes(data)
    proto = onnx.load(apart, load_external_data=False)
    for entry in (e for t in proto.graph.initializer if uses_external_data(t) for e in t.external_data):
        if entry.key == "location":
            entry.value = location
    apart.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=re.escape(f"its external data is at {location!r}, expected the bare")):
        open_model_file(apart)


def test_the_size_is_that_of_both_files(apart: Path) -> None:
    sizes = [file.stat().st_size for file in (apart, data_of(apart))]
    assert open_model_file(apart).size_bytes == sum(sizes)
    assert sizes[1] > 100_000


def test_a_pair_that_is_written_anew_is_the_old_one_or_the_new_one(apart: Path, golden: Path) -> None:
    old = data_of(apart)
    other = open_model_file(golden / "version-4-abstaining.onnx")
    (apart.parent / "someone.data").write_bytes(b"of somebody else")
    write_model_file(other.proto, other.manifest, apart, external_data=True)
    new = data_of(apart)
    assert new != old
    assert sorted(one.name for one in apart.parent.iterdir()) == sorted([apart.name, new.name, "someone.data"])
    write_model_file(other.proto, other.manifest, apart, external_data=False)
    assert sorted(one.name for one in apart.parent.iterdir()) == [apart.name, "someone.data"]
    assert open_model_file(apart).manifest.weights_sha256 == other.manifest.weights_sha256


def test_engines_map_the_weights_and_nothing_loads_them_before_somebody_asks(
    apart: Path, tiny_model_path: Path, random_images: np.ndarray
) -> None:
    file = open_model_file(apart)
    embedded = open_model_file(tiny_model_path)
    assert embedded.outline.ByteSize() - file.outline.ByteSize() > 100_000
    for name, threads in (("staged", 2), ("at_once", 1)):
        found, expected = (
            DefendedClassifier.load(path, device="cpu", threads=threads, executor=name)(random_images[:3])
            for path in (apart, tiny_model_path)
        )
        for output in Verdicts.FIELDS:
            np.testing.assert_array_equal(getattr(found, output), getattr(expected, output), err_msg=output)
    assert "proto" not in vars(file)
    assert weights_sha256(file.proto) == weights_sha256(embedded.proto)


def test_a_cache_of_stages_holds_weights_of_its_own(apart: Path, random_images: np.ndarray) -> None:
    before, after = (
        DefendedClassifier.load(apart, device="cpu", threads=2, cache=True)(random_images[:3]) for _ in range(2)
    )
    assert np.array_equal(before.probabilities, after.probabilities)


def test_commands_take_a_pair(apart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("model_signing", reason="needs the extra [signing]")
    private, public = write_key(tmp_path, "own")
    for command in (
        ["inspect", str(apart)],
        ["sign", str(apart), "--key", str(private)],
        ["verify", str(apart), "--key", str(public)],
    ):
        assert run(command) == 0, capsys.readouterr().err
    data = data_of(apart)
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    capsys.readouterr()
    assert run(["verify", str(apart), "--key", str(public)]) == 1
    assert "its weights have SHA-256" in " ".join(capsys.readouterr().out.split())
    data.unlink()
    assert run(["inspect", str(apart)]) == 2
    assert "is not there; both files travel together" in " ".join(capsys.readouterr().err.split())
