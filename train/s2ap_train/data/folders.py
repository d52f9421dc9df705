"""Folders and zips of images, and how the names in them say split and class.

    train/CLASS/IMAGE, test/CLASS/IMAGE     val/CLASS/IMAGE is the test part where there is no test
    CLASS/IMAGE                             the test part is cut off

each also below one more folder, and Tiny-ImageNet's own layout. Several roots are read as one.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_defend.images import READ
from s2ap_defend.types import Float32, Int64
from s2ap_train.data.containers import open_container
from s2ap_train.data.decoding import Decoder
from s2ap_train.data.source import DataSource, OnRead, Resizing, Subset, check_labels, check_test_labels
from s2ap_train.data.tiny_imagenet import is_tiny_imagenet, read_tiny_imagenet
from s2ap_train.data.tree import SPLITS, Labelled, Tree, read_tree

_LAYOUT = f"expected train/CLASS/IMAGE and test/CLASS/IMAGE, or CLASS/IMAGE, with {READ} images"
_LOG = logging.getLogger(__name__)


def open_folder(
    roots: Sequence[Path],
    opened: ExitStack,
    *,
    resizing: Resizing | None,
    channels: int | None,
    on_white: bool = False,
) -> DataSource:
    """List the images of a folder or zip, or of several that complete each other, such as one a split.

    Args:
        roots: Folders and zips.
        opened: Closes the zips when the images are read.
        resizing: Size that images are brought to; None takes them as they are, all alike.
        channels: 1 or 3 to convert; None takes them as they are, all alike.
        on_white: Whether what is transparent is composited on white; otherwise it is refused.

    Raises:
        RecipeError: If a root is missing, or the images do not lie in one of the layouts.
    """
    tree = read_tree([open_container(root, opened) for root in roots])
    test: Labelled | None
    if is_tiny_imagenet(tree):
        training, test, classes = read_tiny_imagenet(tree)
        channels = channels or 3  # some of its images are grey
    else:
        training, test, classes = _by_class_folder(tree)
    check_labels(training.labels, classes, f"the training part of {tree.label}")
    if test is not None:
        check_test_labels(test.labels, classes, f"the test part of {tree.label}")
    decoder = Decoder.of(training.files[0], channels=channels, resizing=resizing, on_white=on_white)
    name = "+".join(dict.fromkeys(root.resolve().stem for root in roots))
    return DataSource(_subset(training, decoder), None if test is None else _subset(test, decoder), classes, name)


def _by_class_folder(tree: Tree) -> tuple[Labelled, Labelled | None, tuple[str, ...]]:
    if not tree.images():
        raise RecipeError(f"{tree.label} holds no images; {_LAYOUT}")
    splits = [name for name in SPLITS if any(path.count("/") >= 2 for path in tree.images(f"{name}/"))]
    if "train" not in splits:
        if splits:
            raise RecipeError(f"{tree.label} holds {splits[0]}/CLASS/IMAGE but no train/CLASS/IMAGE; {_LAYOUT}")
        classes = tree.folders_in("")
        return _labelled(tree, "", classes), None, tuple(classes)
    classes = tree.folders_in("train/")
    training = _labelled(tree, "train/", classes)
    used = next((name for name in splits if name != "train"), None)
    unused = sorted({path.split("/")[0] for path in tree.images()} - {"train", used})
    strange = [name for name in unused if name not in SPLITS]
    if strange:
        raise RecipeError(f"{tree.label} holds images in {strange[0]} besides train; {_LAYOUT}")
    if used is None and unused:
        raise RecipeError(f"{tree.label}: the images in {unused[0]} lie in no class folder; {_LAYOUT}")
    if unused:
        _LOG.warning("%s: the images in %s are not used, those in %s are the test part", tree.label, unused, used)
    return training, None if used is None else _test_subset(tree, f"{used}/", classes), tuple(classes)


def _test_subset(tree: Tree, folder: str, classes: Sequence[str]) -> Labelled:
    filled = {path.removeprefix(folder).split("/")[0] for path in tree.images(folder)}
    for name in tree.folders_in(folder):
        if name not in classes:
            raise RecipeError(
                f"{tree.label} has the class {name!r} in {folder} but not in train/; rename, remove or add it"
            )
        if name not in filled:
            raise RecipeError(f"{tree.label} has no image in {folder}{name}; add some or remove the folder")
    return _labelled(tree, folder, classes)


def _labelled(tree: Tree, folder: str, classes: Sequence[str]) -> Labelled:
    """The images of one split: folder/CLASS/IMAGE, or folder/CLASS/images/IMAGE."""
    label_of = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    for path in tree.images(folder):
        name, *inner = path.removeprefix(folder).split("/")
        if inner[:-1] not in ([], ["images"]) or not inner:
            where = "deeper than its class folder" if inner else "in no class folder"
            raise RecipeError(f"{tree.files[path].label} lies {where}; {_LAYOUT}")
        files.append(tree.files[path])
        labels.append(label_of[name])
    return Labelled(files, np.asarray(labels, dtype=np.int64))


def _subset(data: Labelled, decoder: Decoder) -> Subset:
    def read(rows: Int64, on_read: OnRead) -> Float32:
        return decoder.read([data.files[row] for row in rows], on_read)

    return Subset(data.labels, read)
