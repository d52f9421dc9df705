"""The clean images that `s2ap-defend calibrate` takes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.export.commands.calibrate_runs import figures, refused

from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_defend.sequential import first_answers, run_sequential_test
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet, load_digits


def test_the_calibration_part_of_a_recipe_is_cut_with_the_files_seed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(model), "--data", "digits", "--alpha", "0.1", "--calibrate-on", "all"]) == 0
    output = capsys.readouterr().out
    assert "247 images of the calibration part of digits (seed 0)" in output
    assert "the file was made with recipe 'tiny', not 'digits'" in output
    file = open_model_file(model.with_name("model.calibrated.onnx"))
    splits = load_digits(0)
    answers = StageEngines.from_file(file).answers(splits.calibration.images, splits.calibration.labels)
    outcome = run_sequential_test(file.manifest.to_test(), answers.said)
    assert file.manifest.test.calibration.reference_ratios == tuple(np.sort(outcome.log_likelihood_ratio).tolist())


def save_images(folder: Path, images: np.ndarray, names: list[str]) -> None:
    for image, name in zip(images, names, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rint(image[0] * 255).astype(np.uint8)).save(path)


def test_a_folder_without_labels_will_do_when_all_images_count(
    model: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "flat"
    save_images(folder, digits.images[:60], [f"{i:02d}.png" for i in range(60)])
    archive = tmp_path / "flat.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        for path in sorted(folder.iterdir()):
            writer.write(path, path.name)
    of_folder, of_zip = (
        figures(capsys, model, "--data", source, "--calibrate-on", "all", "--alpha", "0.1")
        for source in (folder, archive)
    )
    assert (of_folder["samples"], of_folder["first_accuracy"]) == (60, None)
    assert of_folder == of_zip
    save_images(tmp_path / "one" / "photos", digits.images[:60], [f"{i:02d}.png" for i in range(60)])
    of_one = figures(capsys, model, "--data", tmp_path / "one", "--calibrate-on", "all", "--alpha", "0.1")
    assert of_one == of_folder
    np.savez(tmp_path / "flat.npz", images=digits.images[:60])
    of_array = figures(capsys, model, "--data", tmp_path / "flat.npz", "--calibrate-on", "all", "--alpha", "0.1")
    assert of_array == of_folder
    assert "expected images and labels" in refused(capsys, model, "--data", tmp_path / "flat.npz")
    assert "--calibrate-on all" in refused(capsys, model, "--data", folder, "--alpha", "0.1")


def test_class_folders_count_by_name(
    model: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(model)
    first = first_answers(file.manifest.to_test(), StageEngines.from_file(file).ask(digits.images))
    kinds, counts = np.unique(first, return_counts=True)
    highest = kinds[kinds > 0][np.argmax(counts[kinds > 0])]  # by number it would be class 0 or 1
    some = np.flatnonzero(first == highest)
    other = "2" if highest == 1 else "0"
    save_images(tmp_path / "two", digits.images[some], [f"{highest}/{i}.png" for i in some])
    save_images(tmp_path / "two", digits.images[:3], [f"{other}/{i}.png" for i in range(3)])
    arguments = ["calibrate", str(model), "--data", str(tmp_path / "two"), "--alpha", "0.5", "--json"]
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["samples"] >= len(some)
    assert "no images of 8 of the file's classes" in captured.err


def test_a_part_of_what_the_file_was_made_with_is_warned_about(
    model: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(model)
    made = file.manifest.provenance.model_copy(update={"data": "pets-train+pets-test"})
    write_model_file(file.proto, file.manifest.model_copy(update={"provenance": made}), model)
    names = [f"{label}/{i}.png" for i, label in enumerate(digits.labels[:60])]
    for folder in ("pets-train", "pets"):
        save_images(tmp_path / folder, digits.images[:60], names)
        assert run(["calibrate", str(model), "--data", str(tmp_path / folder), "--alpha", "0.5", "--json"]) == 0
        warned = "if images of it trained the file, the false-alarm rate does not hold" in capsys.readouterr().err
        assert warned == (folder == "pets-train")
        model.with_name("model.calibrated.onnx").unlink()


def test_a_limit_takes_a_sample(model: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = figures(capsys, model, "--data", npz, "--calibrate-on", "all", "--alpha", "0.1", "--limit", "50")
    assert said["inputs"] == 50


def test_images_of_other_sizes_are_resized_as_the_file_says_its_training_images_were(
    model: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(model)
    cropped = model.with_name("cropped.onnx")
    described = file.manifest.input.model_copy(update={"resize": "crop"})
    write_model_file(file.proto, file.manifest.model_copy(update={"input": described}), cropped)
    plain, wide, archive = tmp_path / "plain", tmp_path / "wide", tmp_path / "wide.npz"
    names = [f"{i:02d}.png" for i in range(60)]
    save_images(plain, digits.images[:60], names)
    around = np.pad(digits.images[:60], ((0, 0), (0, 0), (0, 0), (3, 3)), constant_values=1.0)
    save_images(wide, around, names)
    np.savez(archive, images=np.rint(255 * around).astype(np.uint8), labels=digits.labels[:60])
    options = ("--calibrate-on", "all", "--alpha", "0.1", "--data")
    expected = figures(capsys, model, *options, plain)
    assert "the model takes [1, 8, 8]" in refused(capsys, model, *options, wide)
    for source in (wide, archive):
        assert figures(capsys, cropped, *options, source)["new"] == expected["new"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((60, 9, 9, 1), np.uint8)}, "are [1, 9, 9], the model takes [1, 8, 8]"),
        ({"images": np.zeros((60, 8, 8, 3), np.uint8)}, "are [3, 8, 8], the model takes [1, 8, 8]"),
        ({"classes": np.array(list("012345678a"))}, "has the class 'a', which is not among the file's 10"),
        ({"labels": np.arange(60) % 12}, "has the class '10', which is not among the file's 10"),
    ],
)
def test_data_that_does_not_fit_is_said_in_one_line(
    arrays: dict[str, np.ndarray], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data" / "wrong.npz"
    path.parent.mkdir()
    np.savez(path, **{"images": np.zeros((60, 8, 8, 1), np.uint8), "labels": np.arange(60) % 10, **arrays})
    assert message in refused(capsys, model, "--data", path)
    assert not list(tmp_path.glob("*.calibrated.onnx"))
