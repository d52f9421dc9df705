"""Training reads every kind of image file with the pixels that classify and the server give it, or refuses it alike."""

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.image_files import CASES, Case
from tests.train.toy_images import files, load, write_folder

from s2ap_defend.errors import InputError, RecipeError
from s2ap_defend.images import read
from s2ap_train.data import DataSettings
from s2ap_train.data.containers import Folder
from s2ap_train.data.decoding import Decoder, ImageFile
from s2ap_train.data.source import Resizing

READ = {name: case for name, case in CASES.items() if not isinstance(case.shown, str) or case.on_white is not None}


def decoded(folder: Path, content: bytes, *, channels: int | None, size: int | None, on_white: bool) -> np.ndarray:
    (folder / "x.png").write_bytes(content)
    file = ImageFile(Folder(folder), "x.png")
    resizing = None if size is None else Resizing((size, size), "crop")
    decoder = Decoder.of(file, channels=channels, resizing=resizing, on_white=on_white)
    return decoder.read([file], lambda _: None)[0]


@pytest.mark.parametrize("case", READ.values(), ids=READ)
def test_the_pixels_are_those_of_the_runtime_to_the_bit(case: Case, tmp_path: Path) -> None:
    options = {"on_white": case.on_white is not None}
    native = read(case.content, **options)
    assert np.array_equal(decoded(tmp_path, case.content, channels=None, size=None, **options), native)
    for channels in (1, 3):
        for size, how in ((8, None), (5, "crop")):
            expected = read(case.content, (channels, size, size), resize=how, **options)
            wanted = size if how else None
            assert np.array_equal(decoded(tmp_path, case.content, channels=channels, size=wanted, **options), expected)


@pytest.mark.parametrize(
    "case", [case for case in CASES.values() if isinstance(case.shown, str)], ids=lambda case: case.shown
)
def test_what_the_runtime_refuses_is_refused_with_its_words(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError) as theirs:
        read(case.content, name=str(tmp_path / "x.png"))
    with pytest.raises(RecipeError) as ours:
        decoded(tmp_path, case.content, channels=3, size=None, on_white=False)
    assert str(ours.value) == str(theirs.value)


def test_a_folder_with_transparent_images_is_read_on_white_where_its_settings_say_so(tmp_path: Path) -> None:
    contents = dict.fromkeys(files(), CASES["RGBA"].content)
    root = write_folder(tmp_path, contents)
    with pytest.raises(RecipeError, match="has transparency; put it on white with on_white"):
        load(root)
    images = load(root, on_white=True).train.images
    assert np.array_equal(images[0], read(CASES["RGBA"].content, on_white=True))
    with pytest.raises(RecipeError, match=r"data\.on_white is for image files, data\.source is 'npz'; remove it"):
        DataSettings(source="npz", root=root, on_white=True)
