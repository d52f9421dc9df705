"""The clean images that a file is calibrated on: of a recipe, a folder, a zip or an .npz file."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_defend.types import Float32, Int64
from s2ap_train.data import DataSettings, Splits, load_data
from s2ap_train.data.arrays import open_npz, unlabelled_npz
from s2ap_train.data.containers import open_container
from s2ap_train.data.decoding import Decoder
from s2ap_train.data.folders import open_folder
from s2ap_train.data.source import DataSource, Resizing
from s2ap_train.data.tree import Tree, read_tree
from s2ap_train.recipe.text import packaged_recipes, read_recipe

_SUBSET_SEED = 0


@dataclass(frozen=True)
class CleanData:
    """Clean images that the file was not made with.

    Attributes:
        images: float32 [N, C, H, W] in [0, 1].
        labels: Indices of the file's classes [N]; None where they are not known.
        description: Which images they are.
        warnings: What the user must know about them, one line each.
    """

    images: Float32
    labels: Int64 | None
    description: str
    warnings: tuple[str, ...] = ()


def load_clean_data(
    source: str, manifest: Manifest, *, root: Path | None = None, limit: int | None = None, labelled: bool = True
) -> CleanData:
    """Read the clean images of a source.

    A recipe gives its calibration part, cut with the file's seed: the images that the file was calibrated on, or would
    have been. So do the very data that the file was made with, as the others trained, chose or fitted something, or are
    for the evaluation. Another data set with a test part of its own gives that part, any other all its images. Class
    names are those of the file, in any order.

    Args:
        source: Name of a packaged recipe, path of a .toml recipe, of a folder or zip of images, or of an .npz file.
        manifest: Of the file.
        root: Where a recipe's data lies, instead of what it says.
        limit: At most so many images, a random sample.
        labelled: Whether labels are needed; without, images without class folders or all in one folder, or in an .npz
            file without labels, will do, and class names do not matter.

    Raises:
        RecipeError: If the source cannot be read, or its classes are not the file's.
        InputError: If the images do not fit the file.
    """
    if source.endswith(".toml") or source in packaged_recipes():
        data = _of_recipe(source, manifest, root, limit, labelled)
    elif root is not None:
        raise RecipeError(f"--root says where a recipe's data lies, but --data {source} is a path; leave it out")
    elif not Path(source).exists():
        raise RecipeError(
            f"--data {source} is no file, folder or packaged recipe; give a folder or zip of CLASS/IMAGE, an .npz "
            f"file, a .toml recipe, or one of {', '.join(packaged_recipes())}"
        )
    else:
        own = _own_splits(Path(source), manifest)
        if own is None:
            data = _of_path(Path(source), manifest, limit, labelled)
        else:
            data = _calibration_part(own, manifest, limit, labelled)
    if data.images.shape[1:] != manifest.input.shape:
        raise InputError(
            f"{data.description} are {list(data.images.shape[1:])}, the model takes {list(manifest.input.shape)}; "
            "prepare them as the training data was"
        )
    return data


def _of_recipe(source: str, manifest: Manifest, root: Path | None, limit: int | None, labelled: bool) -> CleanData:
    tables = read_recipe(source, ())
    if "data" not in tables:
        raise RecipeError(f"recipe {source} names no data; give a recipe that does")
    settings = DataSettings.model_validate(tables["data"])
    if root is not None:
        settings = DataSettings.model_validate({**settings.model_dump(), "root": root})
    if settings.source != "digits" and not settings.roots:
        raise RecipeError(f"recipe {source} does not say where its data {settings.source!r} lies; add --root PATH")
    made = manifest.provenance
    splits = load_data(settings, made.seed)
    warnings = []
    if made.data != splits.name:
        warnings.append(f"the file was made with data {made.data!r}, these images are of {splits.name!r}")
    if made.recipe != tables.get("name"):
        warnings.append(
            f"the file was made with recipe {made.recipe!r}, not {tables.get('name')!r}: if the two cut the data "
            "differently, some of these images trained the file and the false-alarm rate does not hold"
        )
    return _calibration_part(splits, manifest, limit, labelled, tuple(warnings))


def _own_splits(path: Path, manifest: Manifest) -> Splits | None:
    """The images that the file was made with, cut as they were then; None: these are others."""
    made, protocol = manifest.provenance, manifest.provenance.protocol
    kind = "npz" if path.suffix.lower() == ".npz" else "folder"
    if protocol is None or protocol.split.get("source") != kind:
        return None
    try:
        splits = load_data(DataSettings.model_validate({**protocol.split, "root": path}), made.seed)
    except (RecipeError, ValidationError):  # they cannot be cut so
        return None
    return splits if splits.sha256("test") == protocol.test_sha256 else None


def _calibration_part(
    splits: Splits, manifest: Manifest, limit: int | None, labelled: bool, warnings: tuple[str, ...] = ()
) -> CleanData:
    part = splits.calibration
    labels = _file_labels(part.labels, splits.classes, manifest, splits.name) if labelled else None
    rows = _sample(len(part), limit)
    said = f"{len(rows)} images of the calibration part of {splits.name} (seed {manifest.provenance.seed})"
    return CleanData(part.images[rows], None if labels is None else labels[rows], said, warnings)


def _of_path(path: Path, manifest: Manifest, limit: int | None, labelled: bool) -> CleanData:
    with ExitStack() as opened:
        resizing = _resizing(manifest)
        if path.suffix.lower() == ".npz":
            alone = None if labelled else unlabelled_npz(path, resizing)
            if alone is not None:
                rows = _sample(len(alone.labels), limit)
                return CleanData(alone.read(rows, lambda _: None), None, f"{len(rows)} unlabelled images of {path}")
            source = open_npz(path, resizing)
        else:
            tree = read_tree([open_container(path, opened)])
            folders = {image.rpartition("/")[0] for image in tree.images()}
            if len(folders) == 1 and not labelled:
                return _unlabelled(tree, manifest, limit)
            if folders == {""}:
                raise RecipeError(
                    f"{path} holds images without class folders, and counting those that the classifier gets right "
                    "needs labels; sort them into CLASS/IMAGE, or say --calibrate-on all"
                )
            channels = manifest.input.channels
            source = open_folder((path,), opened, resizing=resizing, channels=channels if channels in {1, 3} else None)
        return _of_source(source, manifest, limit, labelled)


def _of_source(source: DataSource, manifest: Manifest, limit: int | None, labelled: bool) -> CleanData:
    part, what = (source.test, "images of the test part") if source.test is not None else (source.training, "images")
    labels = _file_labels(part.labels, source.classes, manifest, source.name) if labelled else None
    rows = _sample(len(part.labels), limit)
    kept = None if labels is None else labels[rows]
    missing = [] if kept is None else [name for i, name in enumerate(manifest.classes) if not (kept == i).any()]
    warnings = [f"no images of {len(missing)} of the file's classes, such as {missing[0]!r}"] if missing else []
    made = manifest.provenance.data
    if source.name in made.split("+"):
        warnings.append(
            f"{source.name} has the name of what the file was made with ({made}): if images of it trained the file, "
            "the false-alarm rate does not hold; name one folder that holds all, and its calibration part is taken"
        )
    return CleanData(part.read(rows, lambda _: None), kept, f"{len(rows)} {what} of {source.name}", tuple(warnings))


def _unlabelled(tree: Tree, manifest: Manifest, limit: int | None) -> CleanData:
    files = [tree.files[path] for path in tree.images()]
    chosen = [files[row] for row in _sample(len(files), limit)]
    channels = manifest.input.channels
    kept = channels if channels in {1, 3} else None
    decoder = Decoder.of(chosen[0], channels=kept, resizing=_resizing(manifest))
    images = decoder.read(chosen, lambda _: None)
    return CleanData(images, None, f"{len(chosen)} unlabelled images of {tree.label}")


def _resizing(manifest: Manifest) -> Resizing | None:
    """What was done to images of other sizes when the file was trained; None: they were taken as they are."""
    described = manifest.input
    return None if described.resize is None else Resizing((described.height, described.width), described.resize)


def _sample(count: int, limit: int | None) -> Int64:
    """Rows of a random sample, in the order of the data; all without a limit."""
    rows = np.arange(count, dtype=np.int64)
    if limit is None or limit >= count:
        return rows
    return np.sort(np.random.default_rng(_SUBSET_SEED).permutation(rows)[:limit])


def _file_labels(labels: Int64, classes: tuple[str, ...], manifest: Manifest, name: str) -> Int64:
    """Labels as indices of the file's classes."""
    unknown = [found for found in classes if found not in manifest.classes]
    if unknown:
        raise RecipeError(
            f"{name} has the class {unknown[0]!r}, which is not among the file's {len(manifest.classes)}: "
            f"{', '.join(manifest.classes[:10])}{', ...' if len(manifest.classes) > 10 else ''}; rename its classes"
        )
    index = np.array([manifest.classes.index(found) for found in classes], dtype=np.int64)
    return index[labels]
