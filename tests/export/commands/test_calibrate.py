import hashlib
import math
import resource
from pathlib import Path

import numpy as np
import pytest
from tests.export.commands.calibrate_runs import figures, refused

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.golden_record import read_golden
from s2ap_defend.model_file import ModelFile, open_model_file, write_model_file
from s2ap_defend.sequential import run_sequential_test
from s2ap_train.calibration import alarm_statistic
from s2ap_train.calibration.stage_engines import StageEngines
from s2ap_train.data import ImageSet


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
    golden = read_golden(new.proto)
    assert golden is not None
    asked = DefendedClassifier.load(new.path, device="cpu")(golden.images((1, 8, 8)))
    assert list(golden.log_likelihood_ratio) == asked.log_likelihood_ratio.tolist()


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


def test_figures_of_the_old_boundary_are_dropped_and_that_is_said_and_a_pair_stays_one(
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
    write_model_file(file.proto, measured, model, external_data=True)
    arguments = ["calibrate", str(model), "--data", str(npz), "--alpha", "0.1", "--calibrate-on", "all"]
    assert run(arguments) == 0
    output = capsys.readouterr().out
    assert "what was measured with the old decision is not in the new file" in output
    assert "120 of 120 images counted: clean inputs, right or wrong." in output
    written = open_model_file(model.with_name("model.calibrated.onnx"))
    assert written.manifest.measured == ()
    assert written.data_locations == (f"model.calibrated.onnx.{written.manifest.weights_sha256[:12]}.data",)


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
