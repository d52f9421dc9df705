import hashlib
import json
import math
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import ModelFile, open_model_file, write_model_file
from s2ap_defend.sequential import first_answers, run_sequential_test
from s2ap_train.calibration import alarm_statistic
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet, load_digits


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    """120 digits."""
    return load_digits(seed=3).test.subset(slice(0, 120))


@pytest.fixture(scope="module")
def npz(digits: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, images=digits.images, labels=digits.labels)
    return path


@pytest.fixture
def model(tiny_model_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(tiny_model_path.read_bytes())
    return path


def figures(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert run(["calibrate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on standard error of a command that must fail."""
    assert run(["calibrate", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    return captured.err


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors(file: ModelFile) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in file.proto.graph.initializer}


def test_a_file_is_calibrated_on_new_images_and_serves_the_new_boundary(
    model: Path, npz: Path, digits: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sha256(model)
    said = figures(capsys, model, "--data", npz, "--alpha", "0.1", "--calibrate-on", "all")
    assert sha256(model) == before
    old, new = open_model_file(model), open_model_file(model.with_name("model.calibrated.onnx"))
    test = new.manifest.to_test()
    answers = StageEngines.from_file(new).answers(digits.images, digits.labels)
    outcome = run_sequential_test(test, answers.said)
    served = DefendedClassifier.load(new.path, device="cpu")(digits.images)
    np.testing.assert_array_equal(served.adversarial, outcome.adversarial)
    np.testing.assert_array_equal(served.label, outcome.label)
    np.testing.assert_array_equal(served.log_likelihood_ratio, outcome.log_likelihood_ratio)
    np.testing.assert_array_equal(served.members_used, outcome.members_used)
    # exactly what is strictly above the 109th smallest statistic: at most 11 of 120
    statistics = np.sort(alarm_statistic(old.manifest.to_test(), answers))
    assert said["new"]["boundary"] == np.nextafter(statistics[108], math.inf)
    assert served.adversarial.sum() == (statistics > statistics[108]).sum() <= 11
    assert said["new"]["flagged"] == pytest.approx(served.adversarial.mean())
    assert said["new"]["members_used"] == pytest.approx(served.members_used.mean())
    old_outcome = run_sequential_test(old.manifest.to_test(), answers.said)
    assert said["old"]["false_alarm_rate"] == pytest.approx(old_outcome.adversarial.mean())
    low, high = said["old"]["false_alarm_rate_interval"]
    assert low < said["old"]["false_alarm_rate"] < high


def test_nothing_but_the_boundaries_changes(model: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures(capsys, model, "--data", npz, "--alpha", "0.1", "--calibrate-on", "all")
    old, new = open_model_file(model), open_model_file(model.with_name("model.calibrated.onnx"))
    changed = {name for name, data in tensors(new).items() if tensors(old)[name] != data}
    assert changed == {"test/lower", "test/upper"}
    assert new.manifest.graph_sha256 == old.manifest.graph_sha256
    assert new.manifest.members == old.manifest.members
    assert new.manifest.decision == old.manifest.decision
    for name in ("evidence", "edges", "increments", "truncation", "opening", "await_vote", "signals", "waves", "beta"):
        assert getattr(new.manifest.test, name) == getattr(old.manifest.test, name)
    assert new.manifest.test.alpha == 0.1
    assert new.manifest.test.kind == "hand-made; then: conformal alarm boundary"
    record = new.manifest.test.calibration
    assert (record.on, record.samples, len(record.reference_ratios)) == ("all", 120, 120)
    assert record.expected_false_alarm_rate == pytest.approx(12 / 121)


def test_figures_of_the_old_boundary_are_dropped_and_that_is_said(
    model: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(model)
    row = {
        "attack": "pgd",
        "eps": 0.1,
        "samples": 10,
        "bare_accuracy": 0.1,
        "robust_accuracy": 0.5,
        "label_accuracy": 0.3,
        "flagged": 0.5,
        "members_used": 4.0,
    }
    measured = type(file.manifest).model_validate({**file.manifest.model_dump(), "measured": [row]})
    write_model_file(file.proto, measured, model)
    arguments = ["calibrate", str(model), "--data", str(npz), "--alpha", "0.1", "--calibrate-on", "all"]
    assert run(arguments) == 0
    output = capsys.readouterr().out
    assert "what was measured with the old decision is not in the new file" in output
    assert "120 of 120 images counted: clean inputs, right or wrong." in output
    assert open_model_file(model.with_name("model.calibrated.onnx")).manifest.measured == ()


def test_calibrating_again_moves_the_boundary_either_way_and_forgets_the_last_one(
    model: Path, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / f"{name}.onnx" for name in ("loose", "tight", "loose-again")]
    for source, target, alpha in zip([model, *paths], paths, ("0.3", "0.05", "0.3"), strict=False):
        figures(capsys, source, "--data", npz, "--alpha", alpha, "--calibrate-on", "all", "-o", target)
    loose, tight, again = (open_model_file(path).manifest.test for path in paths)
    assert tight.upper[0] is not None
    assert loose.upper[0] is not None
    assert tight.upper[0] > loose.upper[0]
    assert again == loose


def test_min_accept_moves_the_first_clean_decision(model: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for accept in ("4", "1"):
        figures(capsys, model, "--data", npz, "--alpha", "0.1", "--calibrate-on", "all", "--min-accept", accept)
        lower = open_model_file(model.with_name("model.calibrated.onnx")).manifest.test.lower
        first = int(accept)
        assert lower[: first - 1] == (None,) * (first - 1)
        assert lower[first - 1 : 5] == (-1.25,) * (6 - first)


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


def test_a_limit_takes_a_sample(model: Path, npz: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = figures(capsys, model, "--data", npz, "--calibrate-on", "all", "--alpha", "0.1", "--limit", "50")
    assert said["inputs"] == 50


def test_a_file_may_be_replaced_by_itself_when_the_output_says_so(
    model: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_model_file(model).manifest.test.upper
    figures(capsys, model, "--data", npz, "--calibrate-on", "all", "--alpha", "0.1", "-o", model)
    assert open_model_file(model).manifest.test.upper != before
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_a_write_that_fails_half_way_leaves_the_old_file(
    model: Path, npz: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sha256(model)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (model.stat().st_size // 2, hard))  # the disk is full half way
    try:
        arguments = ("--data", npz, "-o", model, "--calibrate-on", "all", "--alpha", "0.1")
        assert "cannot be written" in refused(capsys, model, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sha256(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "0"], "alpha 0 is no false-alarm rate"),
        (["--alpha", "1"], "alpha 1 is no false-alarm rate"),
        (["--alpha", "nan"], "alpha nan is no false-alarm rate"),
        (
            ["--alpha", ".99"],
            "alpha 0.99 and the file's miss rate beta 0.05 make one or more together; give an alpha below",
        ),
        (["-o", "new/dir/x.onnx"], "needs 49 clean inputs or more"),
        (["--alpha", "0.001"], "a false-alarm rate of 0.001 needs 999 clean inputs or more, got 120 of 120"),
        (["--min-accept", "7", "--alpha", "0.1"], "--min-accept is 7, the file has 6 members"),
        (["--min-accept", "0"], "Invalid value for '--min-accept'"),
        (["-o", "/proc/no/model.onnx"], "/proc/no/model.onnx cannot be written"),
        (["--root", "."], "--root says where a recipe's data lies"),
        (["--limit", "30"], "needs 49 clean inputs or more, got 30 of 30"),
    ],
)
def test_settings_that_cannot_work_are_said_in_one_line(
    arguments: list[str],
    message: str,
    model: Path,
    npz: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(model.parent)
    if "-o" in arguments:
        arguments = [*arguments, "--limit", "30"]
    assert message in refused(capsys, model, "--data", npz, "--calibrate-on", "all", *arguments)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


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


def test_sources_and_files_that_are_not_there_are_said_in_one_line(
    model: Path, npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--data digit is no file, folder or packaged recipe" in refused(capsys, model, "--data", "digit")
    assert "does not say where its data 'cifar10' lies; add --root" in refused(capsys, model, "--data", "cifar10-small")
    assert "missing.onnx does not exist" in refused(capsys, tmp_path / "missing.onnx", "--data", npz)
    assert "clean inputs that are answered right or more, got" in refused(
        capsys, model, "--data", npz, "--alpha", "0.002"
    )


def test_the_share_of_clean_images_without_an_answer_is_said(
    abstaining_model_path: Path, npz: Path, digits: ImageSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (abstaining_model_path, "--data", npz, "--alpha", "0.1", "-o", tmp_path / "x.onnx")
    said = figures(capsys, *arguments)
    share = DefendedClassifier.load(tmp_path / "x.onnx", device="cpu")(digits.images).abstained.mean()
    assert said["new"]["abstained"] == pytest.approx(share)
    assert share > 0.0
    assert run(["calibrate", *map(str, arguments)]) == 0
    assert f"Of all 120 images {share:.2%} get no answer now" in capsys.readouterr().out
