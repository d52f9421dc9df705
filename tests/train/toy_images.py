"""Image folders and zips, written with Pillow, for the tests of data."""

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from s2ap_defend.images import read
from s2ap_train.data import DataSettings, Splits, load_data

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
        for image, label in zip(splits.by_name[name].images, splits.by_name[name].labels, strict=True)
    }


def expected(contents: dict[str, bytes], split: str, shape: tuple[int, int, int] = (3, 6, 6)) -> dict[bytes, str]:
    return {
        read(content, shape).tobytes(): name.split("/")[1]
        for name, content in contents.items()
        if name.startswith(split)
    }


def without_prefix(contents: dict[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): content for name, content in contents.items() if name.startswith(prefix)}
