"""CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST from their files, read by torchvision; nothing is downloaded."""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2ap_defend.errors import RecipeError
from s2ap_train.data.pickles import old_pickles_allowed, read_pickle
from s2ap_train.data.source import DataSource, Resizing, Subset, array_subset, check_labels, check_test_labels

_LARGEST_IDX = 128 * 1024 * 1024  # bytes; Fashion-MNIST's largest file has 47 million
_DIGITS = tuple("0123456789")


def open_cifar(name: str, root: Path, resizing: Resizing | None, *, checksums: bool) -> DataSource:
    """Read `cifar-10-batches-py` or `cifar-100-python`, which lies in `root` or is `root`.

    Args:
        name: 'cifar10', or 'cifar100' with its 100 fine labels.
        root: Folder.
        resizing: Size to resize to.
        checksums: Whether the files must be the published ones; otherwise each pickle is read only if it is harmless.

    Raises:
        RecipeError: If a file is missing, is not the published one, or cannot be read.
    """
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    base = root.parent if root.resolve().name == kind.base_folder else root
    listed = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    files = [(base / kind.base_folder / file, md5) for file, md5 in listed]
    _check_files(files, root, f"unpack {kind.filename} from {kind.url} there", checksums=checksums)
    if not checksums:
        for path, _ in files:
            read_pickle(path)
        tables = {
            "train_list": [(file, None) for file, _ in kind.train_list],
            "test_list": [(file, None) for file, _ in kind.test_list],
            "meta": {**kind.meta, "md5": None},
        }
        kind = type(kind.__name__, (kind,), tables)
    training, test = (_reading(partial(kind, base, train=train), root) for train in (True, False))
    return _source(
        name,
        root,
        resizing,
        classes=tuple(map(str, test.classes)),
        training=(training.data, training.targets),
        test=(test.data, test.targets),
    )


def open_svhn(root: Path, resizing: Resizing | None, *, checksums: bool) -> DataSource:
    """Read `train_32x32.mat` and `test_32x32.mat` (cropped digits); the extra images are not used.

    Raises:
        RecipeError: As `open_cifar`.
    """
    from torchvision import datasets

    kind = datasets.SVHN
    splits = {split: kind.split_list[split] for split in ("train", "test")}
    files = [(root / file, md5) for _, file, md5 in splits.values()]
    urls = " and ".join(url for url, _, _ in splits.values())
    _check_files(files, root, f"put {urls} there", checksums=checksums)
    if not checksums:
        kind = type(
            kind.__name__, (kind,), {"split_list": {split: (*entry[:2], None) for split, entry in splits.items()}}
        )
    training, test = (_reading(partial(kind, root, split=split), root) for split in splits)
    return _source(
        "svhn",
        root,
        resizing,
        classes=_DIGITS,
        training=(training.data.transpose(0, 2, 3, 1), np.atleast_1d(training.labels)),
        test=(test.data.transpose(0, 2, 3, 1), np.atleast_1d(test.labels)),
    )


def open_fashion_mnist(root: Path, resizing: Resizing | None, *, checksums: bool) -> DataSource:
    """Read the four IDX files, as published (.gz) or unpacked, from `root` or from `root`/FashionMNIST/raw.

    Published checksums exist for the .gz files only; unpacked ones are taken as they are.

    Raises:
        RecipeError: As `open_cifar`.
    """
    from torchvision import datasets

    resources = dict(datasets.FashionMNIST.resources)
    below = root / "FashionMNIST" / "raw"
    folder = below if below.is_dir() else root
    packed = any((folder / name).exists() for name in resources)
    files = [
        (folder / name, md5) if packed else (folder / name.removesuffix(".gz"), None) for name, md5 in resources.items()
    ]
    names = ", ".join(resources)
    _check_files(files, root, f"put {names} there, from {datasets.FashionMNIST.mirrors[0]}", checksums=checksums)

    class Unpacked(datasets.FashionMNIST):  # type: ignore[misc]  # torchvision is untyped
        """The data set in one folder, of any name."""

        @property
        def raw_folder(self) -> str:
            return str(self.root)

        def _check_legacy_exist(self) -> bool:
            return False

    def read(place: Path) -> list[Any]:
        return [_reading(partial(Unpacked, place, train=train), root) for train in (True, False)]

    if packed:
        with tempfile.TemporaryDirectory() as place:
            for path, _ in files:
                (Path(place) / path.stem).write_bytes(_unpacked(path))
            training, test = read(Path(place))
    else:
        training, test = read(folder)
    return _source(
        "fashion-mnist",
        root,
        resizing,
        classes=tuple(datasets.FashionMNIST.classes),
        training=(training.data.numpy()[..., None], training.targets.numpy()),
        test=(test.data.numpy()[..., None], test.targets.numpy()),
    )


def _check_files(files: Sequence[tuple[Path, str | None]], root: Path, advice: str, *, checksums: bool) -> None:
    from torchvision.datasets.utils import check_integrity

    if not root.is_dir():
        raise RecipeError(f"data.root {root} is no folder; make it and {advice}")
    for path, md5 in files:
        if not path.is_file():
            raise RecipeError(f"data.root {root} lacks {path.name}; {advice}")
        if checksums and not check_integrity(path, md5):
            raise RecipeError(
                f"{path} is not the published file (its MD5 is not {md5}); get it again, or set data.checksums = false "
                "if it is yours"
            )


def _reading(read: Callable[[], Any], root: Path) -> Any:  # noqa: ANN401  a torchvision data set
    """Run a reader whose data files may hold anything; what it raises becomes one message."""
    try:
        with old_pickles_allowed():
            return read()
    except Exception as error:  # torchvision, scipy and struct raise whatever a damaged file leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"the files in data.root {root} cannot be read ({reason}); get them again") from error


def _unpacked(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            content = file.read(_LARGEST_IDX + 1)
    except (OSError, EOFError, ValueError) as error:
        raise RecipeError(f"{path} cannot be unpacked ({error}); get it again") from error
    if len(content) > _LARGEST_IDX:
        raise RecipeError(
            f"{path} unpacks to more than {_LARGEST_IDX} bytes, which Fashion-MNIST does not; get it again"
        )
    return content


def _source(
    name: str,
    root: Path,
    resizing: Resizing | None,
    *,
    classes: tuple[str, ...],
    training: tuple[NDArray[Any], Any],
    test: tuple[NDArray[Any], Any],
) -> DataSource:
    def part(what: str, images: NDArray[Any], labels: Any) -> Subset:  # noqa: ANN401  a list or an array
        numbers = np.asarray(labels)
        if images.dtype != np.uint8 or images.ndim != 4 or numbers.dtype.kind not in "iu" or numbers.ndim != 1:
            raise RecipeError(
                f"{what} holds {images.dtype} images and {numbers.dtype} labels, expected 8-bit and integers"
            )
        if len(images) != len(numbers):
            raise RecipeError(f"{what} holds {len(images)} images and {len(numbers)} labels; get the files again")
        check = check_labels if what.startswith("the training") else check_test_labels
        check(numbers.astype(np.int64), classes, what)
        return array_subset(images, numbers.astype(np.int64), channels_last=True, resizing=resizing)

    parts = [part(f"the {what} part in {root}", *data) for what, data in (("training", training), ("test", test))]
    return DataSource(parts[0], parts[1], classes, name)
