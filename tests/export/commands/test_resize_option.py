"""`harden --resize`: folders of images of mixed sizes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend.commands.main import run
from s2ap_export.commands.harden import harden
from s2ap_export.commands.own_options import Own
from s2ap_export.commands.own_recipe import tables_of
from s2ap_train.data import DataSettings, load_data


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images of each of two classes, white, of two sizes."""
    folder = tmp_path / "photos"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            size = (24, 12) if i % 2 else (12, 24)
            Image.fromarray(np.full((*size, 3), 255, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def own(*options: str) -> Own:
    """What these options of `harden` say."""
    parsed = harden.make_context("harden", ["-o", "m.onnx", *options]).params
    return Own(**{name: parsed[name] for name in Own.__dataclass_fields__})


@pytest.mark.parametrize(("how", "white"), [("crop", 1.0), ("stretch", 1.0), ("pad", 0.5)])
def test_images_of_mixed_sizes_are_resized_as_the_option_says(how: str, white: float, photos: Path) -> None:
    tables = tables_of(None, own("--data", str(photos), "--image-size", "16", "--resize", how), ())
    assert (tables["data"]["image_size"], tables["data"]["resize"]) == (16, how)
    splits = load_data(DataSettings.model_validate({**tables["data"], "fit": 4, "calibration": 4}), 0)
    assert splits.resize == how
    assert splits.train.images.mean() == pytest.approx(white)  # half of a padded square is black


def test_a_recipes_images_are_resized_as_the_option_says(photos: Path) -> None:
    tables = tables_of("fashion", own("--data", str(photos), "--image-size", "8", "--resize", "pad"), ())
    assert (tables["data"]["image_size"], tables["data"]["resize"]) == (8, "pad")


@pytest.mark.parametrize("recipe", [None, "fashion"])
def test_a_relative_path_of_images_is_found_again_from_another_folder(
    recipe: str | None, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    tables = tables_of(recipe, own("--data", "photos", "--image-size", "16"), ())
    assert tables["data"]["root"] == str(photos)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "set data.image_size (--image-size) to resize them"),
        (["--resize", "pad"], "data.resize is 'pad', but no size is given; set data.image_size (--image-size), too"),
        (["--image-size", "16", "--resize", "trained"], "'trained' is not one of 'crop', 'stretch', 'pad'"),
    ],
)
def test_mixed_sizes_without_a_size_and_unknown_names_are_one_line(
    options: list[str], said: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["harden", "--data", str(photos), "-o", str(tmp_path / "m.onnx"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "m.onnx.training").exists()
