"""The published formats, written tiny: CIFAR's Python 2 pickles, SVHN's MATLAB files, Fashion-MNIST's IDX files."""

import gzip
import hashlib
import io
import os
import pickle
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from s2ap_defend.errors import RecipeError
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.data.pickles import read_pickle


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and NumPy 1 wrote when CIFAR was published: byte strings and old names."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string

    def reducer_override(self, value: object) -> object:
        if isinstance(value, np.dtype):
            return np.dtype, ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)
        return value.__reduce__() if isinstance(value, np.ndarray) else NotImplemented


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def pixels(count: int, seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def cifar10(root: Path) -> dict[str, dict[bytes, int]]:
    """Write five training batches of 20 images and 20 test images: labels by pixels of each part."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images: dict[str, dict[bytes, int]] = {"train": {}, "test": {}}
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        data, labels = pixels(20, number, 3072), [n % 10 for n in range(20)]
        batch = {"data": data, "labels": labels, "batch_label": name, "filenames": [f"{n}.png" for n in range(20)]}
        (folder / name).write_bytes(python2_pickle(batch))
        images["test" if name == "test_batch" else "train"].update(
            zip((row.tobytes() for row in data), labels, strict=True)
        )
    meta = {"num_cases_per_batch": 20, "label_names": [f"class{n}" for n in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return images


def cifar100(root: Path) -> dict[str, dict[bytes, int]]:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    images = {}
    for seed, (name, count) in enumerate((("train", 300), ("test", 100))):
        data, labels = pixels(count, seed, 3072), [(7 * n) % 100 for n in range(count)]
        coarse = [label % 20 for label in labels]
        batch = {"data": data, "fine_labels": labels, "coarse_labels": coarse, "batch_label": name, "filenames": []}
        (folder / name).write_bytes(python2_pickle(batch))
        images[name] = dict(zip((row.tobytes() for row in data), labels, strict=True))
    meta = {"fine_label_names": [f"class{n}" for n in range(100)], "coarse_label_names": ["coarse"] * 20}
    (folder / "meta").write_bytes(python2_pickle(meta))
    return images


def svhn(root: Path) -> dict[str, dict[bytes, int]]:
    root.mkdir(parents=True, exist_ok=True)
    images = {}
    for seed, (name, count) in enumerate((("train", 60), ("test", 20))):
        data, labels = pixels(count, seed, 3, 32, 32), np.arange(count) % 10
        published = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]  # MATLAB numbers the digit 0 as 10
        variables = {"X": data.transpose(2, 3, 1, 0), "y": published}
        scipy.io.savemat(root / f"{name}_32x32.mat", variables, do_compression=True)
        images[name] = dict(zip((row.tobytes() for row in data), labels.tolist(), strict=True))
    return images


def fashion_mnist(root: Path, *, packed: bool = True) -> dict[str, dict[bytes, int]]:
    root.mkdir(parents=True, exist_ok=True)
    images = {}
    for seed, (name, prefix, count) in enumerate((("train", "train", 60), ("test", "t10k", 20))):
        data, labels = pixels(count, seed, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4i", 0x803, count, 28, 28) + data.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2i", 0x801, count) + labels.tobytes(),
        }
        for file, content in files.items():
            if packed:
                (root / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (root / file).write_bytes(content)
        images[name] = dict(zip((row.tobytes() for row in data), labels.tolist(), strict=True))
    return images


WRITERS = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "fashion-mnist": fashion_mnist}
SHAPES = {"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "svhn": (3, 32, 32), "fashion-mnist": (1, 28, 28)}


def load(source: str, root: Path, **settings: object) -> Splits:
    return load_data(DataSettings(source=source, root=root, **{"checksums": False, **settings}), 0)


def found(splits: Splits, *names: str) -> dict[bytes, int]:
    return {
        np.round(image * 255).astype(np.uint8).tobytes(): label
        for name in names
        for image, label in zip(splits.by_name[name].images, splits.by_name[name].labels.tolist(), strict=True)
    }


@pytest.mark.parametrize("source", WRITERS)
def test_every_image_arrives_with_its_label_and_in_its_part(tmp_path: Path, source: str) -> None:
    written = WRITERS[source](tmp_path)
    splits = load(source, tmp_path)
    assert splits.name == source
    assert splits.image_shape == SHAPES[source]
    assert found(splits, "test") == written["test"]
    assert found(splits, "train", "validation", "fit", "calibration") == written["train"]
    assert len(splits.classes) == (100 if source == "cifar100" else 10)


@pytest.mark.parametrize("source", WRITERS)
def test_files_that_are_not_the_published_ones_need_a_word(tmp_path: Path, source: str) -> None:
    WRITERS[source](tmp_path)
    with pytest.raises(RecipeError, match=r"is not the published file \(its MD5 is not .* data\.checksums = false"):
        load(source, tmp_path, checksums=True)


def test_files_with_the_published_checksums_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    md5 = {path.name: hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest() for path in folder.iterdir()}
    for table in ("train_list", "test_list"):
        names = [name for name, _ in getattr(datasets.CIFAR10, table)]
        monkeypatch.setattr(datasets.CIFAR10, table, [[name, md5[name]] for name in names])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", md5["batches.meta"])
    assert found(load("cifar10", tmp_path, checksums=True), "test") == written["test"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("cifar10", "lacks data_batch_1; unpack cifar-10-python.tar.gz from https://.* there"),
        ("cifar100", "lacks train; unpack cifar-100-python.tar.gz"),
        ("svhn", r"lacks train_32x32\.mat; put http://.*train_32x32\.mat and .*test_32x32\.mat there"),
        ("fashion-mnist", r"lacks train-images-idx3-ubyte; put train-images-idx3-ubyte\.gz, "),
    ],
)
def test_a_missing_data_set_says_what_to_put_where(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(source, tmp_path)
    with pytest.raises(RecipeError, match="is no folder; make it and "):
        load(source, tmp_path / "none")


def test_the_folder_of_a_data_set_may_be_the_root_itself(tmp_path: Path) -> None:
    cifar10(tmp_path)
    fashion_mnist(tmp_path / "FashionMNIST" / "raw")
    assert load("cifar10", tmp_path / "cifar-10-batches-py").sha256() == load("cifar10", tmp_path).sha256()
    inner = load("fashion-mnist", tmp_path / "FashionMNIST" / "raw")
    assert inner.sha256() == load("fashion-mnist", tmp_path).sha256()


def test_unpacked_fashion_mnist_is_the_same(tmp_path: Path) -> None:
    fashion_mnist(tmp_path / "packed")
    fashion_mnist(tmp_path / "unpacked", packed=False)
    before = sorted((tmp_path / "packed").iterdir())
    packed = load("fashion-mnist", tmp_path / "packed")
    assert packed.sha256() == load("fashion-mnist", tmp_path / "unpacked").sha256()
    assert sorted((tmp_path / "packed").iterdir()) == before


def test_limits_and_sizes_hold_for_published_sets(tmp_path: Path) -> None:
    cifar10(tmp_path)
    splits = load(
        "cifar10", tmp_path, image_size=16, train_limit=30, validation=10, fit=10, calibration=20, test_limit=10
    )
    assert splits.image_shape == (3, 16, 16)
    assert [len(part) for part in splits.by_name.values()] == [30, 10, 10, 20, 10]
    for part in splits.by_name.values():
        assert len({*np.bincount(part.labels, minlength=10).tolist()}) == 1


class Command:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_calls_anything_is_refused_before_it_is_read(tmp_path: Path) -> None:
    cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Command(tmp_path / "ran"), "labels": []}))
    with pytest.raises(RecipeError, match=r"data_batch_3 is not a pickle of arrays, numbers and text \(it calls posix"):
        load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [len, np.load, pickle.loads, Command, np.float64(1), {1}])
def test_only_arrays_lists_numbers_and_text_are_unpickled(tmp_path: Path, value: object) -> None:
    (tmp_path / "p").write_bytes(pickle.dumps([value]))
    if isinstance(value, set):
        assert read_pickle(tmp_path / "p") == [{1}]
    else:
        with pytest.raises(RecipeError, match="it calls "):
            read_pickle(tmp_path / "p")


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_pickle_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    value = {"data": pixels(3, 0, 4), "labels": [0, 1, 2], "name": "batch"}
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol))
    read = read_pickle(tmp_path / "p")
    assert (read.pop("data") == value.pop("data")).all()
    assert read == value


@pytest.mark.parametrize("source", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_cut_off_file_is_refused_with_one_message(tmp_path: Path, source: str, share: float) -> None:
    WRITERS[source](tmp_path)
    for path in filter(Path.is_file, sorted(tmp_path.rglob("*"))):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(RecipeError) as caught:
            load(source, tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        path.write_bytes(whole)


def test_contents_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    whole = {"data": pixels(20, 9, 3072), "labels": [n % 10 for n in range(20)]}
    for change, message in (
        ({"labels": [10] * 20}, "test part in .* has labels from 10 to 10, expected 0 to 9"),
        ({"labels": [0] * 19}, "holds 20 images and 19 labels"),
        ({"labels": ["cat"] * 20}, "expected 8-bit and integers"),
        ({"data": whole["data"].astype(np.float32)}, "holds float32 images"),
        ({"data": whole["data"][:, :100]}, "cannot be read"),
    ):
        (folder / "test_batch").write_bytes(pickle.dumps({**whole, **change}))
        with pytest.raises(RecipeError, match=message):
            load("cifar10", tmp_path)


def test_a_class_without_training_images_is_refused(tmp_path: Path) -> None:
    svhn(tmp_path)
    variables = {"X": pixels(32, 0, 32, 3, 40).astype(np.uint8), "y": (np.arange(40) % 9 + 1).astype(np.uint8)[:, None]}
    scipy.io.savemat(tmp_path / "train_32x32.mat", variables)
    with pytest.raises(RecipeError, match=r"training part in .* has no image of class '0'"):
        load("svhn", tmp_path)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2_000_000)))
    monkeypatch.setattr("s2ap_train.data.torchvision_sets._LARGEST_IDX", 1_000_000)
    with pytest.raises(RecipeError, match="unpacks to more than 1000000 bytes"):
        load("fashion-mnist", tmp_path)
