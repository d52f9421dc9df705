"""Tiny-ImageNet's own layout (Stanford CS231N): 200 classes by WordNet number, its validation images as test part.

train/WNID/images/IMAGE, val/images/IMAGE, val/val_annotations.txt (IMAGE, WNID and a box a line), wnids.txt, words.txt.
The images of test/ have no labels and are not used.
"""

from collections import Counter

import numpy as np

from s2ap_defend.errors import RecipeError
from s2ap_train.data.tree import Labelled, Tree

ANNOTATIONS = "val/val_annotations.txt"
_NUMBERS, _WORDS = "wnids.txt", "words.txt"


def is_tiny_imagenet(tree: Tree) -> bool:
    """Whether a tree has the file that says the labels of the validation images."""
    return ANNOTATIONS in tree.files


def read_tiny_imagenet(tree: Tree) -> tuple[Labelled, Labelled, tuple[str, ...]]:
    """List the images: (training part, test part, class names).

    Classes are ordered by WordNet number and named by words.txt; a name that two classes share gets the number.

    Raises:
        RecipeError: If images and lists do not agree.
    """
    numbers = sorted({line.strip() for line in tree.text(_NUMBERS)} - {""}) if _NUMBERS in tree.files else None
    numbers = numbers or tree.folders_in("train/")
    label_of = {number: label for label, number in enumerate(numbers)}
    training = [path for path in tree.images("train/") if path.split("/")[1] in label_of]
    annotated = _annotations(tree)
    test = tree.images("val/images/")
    names = [path.rsplit("/", 1)[-1] for path in test]
    for path, name in zip(test, names, strict=True):
        if annotated.get(name) not in label_of:
            what = f"the class {annotated[name]!r}, which train lacks" if name in annotated else "no class"
            raise RecipeError(f"{tree.files[path].label} has {what} in {ANNOTATIONS}; unpack the data set again")
    missing = sorted({*annotated} - {*names})
    if missing:
        raise RecipeError(
            f"{tree.files[ANNOTATIONS].label} lists {missing[0]}, which is not in val/images; unpack again"
        )
    return (
        _labelled(tree, training, [label_of[path.split("/")[1]] for path in training]),
        _labelled(tree, test, [label_of[annotated[name]] for name in names]),
        _class_names(tree, numbers),
    )


def _annotations(tree: Tree) -> dict[str, str]:
    annotated = {}
    for number, line in enumerate(tree.text(ANNOTATIONS), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise RecipeError(
                f"{tree.files[ANNOTATIONS].label}, line {number}, is {line[:40]!r}, expected IMAGE, tab, WNID"
            )
        annotated[columns[0]] = columns[1].strip()
    return annotated


def _class_names(tree: Tree, numbers: list[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in tree.text(_WORDS) if "\t" in line) if _WORDS in tree.files else {}
    names = [words.get(number, number).strip() for number in numbers]
    uses = Counter(names)
    return tuple(name if uses[name] == 1 else f"{name} ({number})" for name, number in zip(names, numbers, strict=True))


def _labelled(tree: Tree, paths: list[str], labels: list[int]) -> Labelled:
    return Labelled([tree.files[path] for path in paths], np.asarray(labels, dtype=np.int64))
