import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.export.small_recipe import OVERRIDES

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.manifest import ChoiceRecord
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import PURIFIER, stage_sizes
from s2ap_defend.verification.verify import verify_file
from s2ap_export.hardening import harden, reduced
from s2ap_train.commands.choose_purifier import choose_purifier as sweep_alone
from s2ap_train.redteam.evaluation import evaluate_file
from s2ap_train.storage.checkpoint import load_checkpoint, save_checkpoint

ONE_ATTACK = ("--set", 'evaluation.attacks="fgsm"')
"""Where the file is looked at and not its figures."""


@pytest.fixture(scope="module")
def hardened(small_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defended file made by the real command with networks too small and short to defend anything."""
    path = tmp_path_factory.mktemp("harden") / "model.onnx"
    shutil.copytree(small_parts, path.with_name("model.onnx.training"))
    assert run(["harden", "digits", "-o", str(path), "--workers", "1", "--external-data", *OVERRIDES]) == 0
    return path


def test_harden_writes_a_verified_file_with_members_measured_under_attack(hardened: Path) -> None:
    manifest = open_model_file(hardened).manifest
    measured = [row.attack for row in manifest.measured]
    assert (measured[0], measured[-1]) == ("clean", "worst case")
    assert measured[1:-1] == ["fgsm", "pgd", "apgd-ce", "unrolled-pgd"]
    assert sorted(member.method for member in manifest.members) == [
        "l1-norm",
        "random-channel",
        "random-channel",
        "s2ap",
        "s2ap",
        "s2ap",
    ]
    first_seeds = {"s2ap": 100, "l1-norm": 300}
    pruned, *others = manifest.members
    assert (pruned.method, pruned.role, pruned.sees, pruned.vote_weight) == ("s2ap", "juror", "raw", 1.0)
    assert pruned.seeds.initialisation == pruned.seeds.mask == pruned.seeds.order == manifest.provenance.seed
    for member in manifest.members:
        assert member.flops > 0
        assert member.parameters > 0
        assert member.adversarially_trained is (member.method == "s2ap")
        assert (member.role == "juror") is (member.vote_weight > 0) is member.adversarially_trained
        assert member.sees == ("raw" if member.role == "juror" else "purified")
    for member in others:
        assert member.seeds.initialisation == (member.seeds.mask if member.method == "s2ap" else 0)
        assert member.seeds.mask == member.seeds.order >= first_seeds.get(member.method, 1000)
    assert manifest.provenance.recipe == "digits"
    assert all((member.milliseconds or 0) > 0 for member in manifest.members)
    record = manifest.test.calibration
    assert manifest.test.kind.startswith("conformal")
    assert record.expected_false_alarm_rate is not None
    assert record.expected_false_alarm_rate <= manifest.test.alpha
    assert 0 < record.samples <= len(record.reference_ratios) == 247
    assert DefendedClassifier.load(hardened, device="cpu").input_shape == (1, 8, 8)


def test_the_file_holds_golden_answers_and_everything_in_it_verifies(hardened: Path) -> None:
    found = verify_file(hardened)
    assert found.golden
    assert found.sound
    assert len(open_model_file(hardened).data_locations) == 1
    assert [check.name for check in found.checks if check.state != "passed"] == []


def test_the_manifest_says_which_purifier_was_chosen_why_and_what_it_changes(
    hardened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    purifier = open_model_file(hardened).manifest.purifier
    choice = purifier.choice
    assert choice is not None
    assert (choice.by, choice.chosen, choice.split, choice.samples) == ("recipe", 1, "validation", 12)
    off, own, plain = choice.rows
    assert off.off
    assert (own.sigmas, own.rho) == (purifier.sigmas, purifier.rho)
    assert plain.rho == 0.0 < own.rho
    assert own.network_passes == 2 * plain.network_passes > off.network_passes == 0
    assert choice.defended == "the plain classifier and 6 members, without the test"
    figures = f"{own.adaptive_accuracy:.1%} stay right, {off.adaptive_accuracy:.1%} without a purifier, "
    assert f"{figures}{plain.adaptive_accuracy:.1%} with rho 0" in choice.reason
    assert run(["inspect", str(hardened)]) == 0
    assert choice.reason in capsys.readouterr().out


def test_checkpoints_hold_masks_scores_and_the_flip_rate(hardened: Path) -> None:
    tensors, record = load_checkpoint(hardened.with_name("model.onnx.training") / "pruned")
    assert record["flip_rate"] is not None
    for name in [name for name in tensors if name.startswith("mask.")]:
        weight = tensors[name.replace("mask.", "weight.")]
        assert (weight[~tensors[name]] == 0).all()
        assert name.replace("mask.", "score.") in tensors


def test_a_second_run_trains_nothing_writes_the_same_weights_and_measures_only_networks_that_changed(
    hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_model_file(hardened).manifest
    assert run(["harden", "digits", "-o", str(hardened), "--workers", "1", "--dry-run", *OVERRIDES]) == 0
    output = capsys.readouterr().out
    assert ", 100% of the attacks on purifiers, 100% of the attacks on the file" in output
    assert "of one core" not in output

    folder = tmp_path / "work"
    shutil.copytree(hardened.with_name("model.onnx.training"), folder)
    tensors, record = load_checkpoint(folder / "adversarial")
    changed = {name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_checkpoint(folder / "adversarial", tensors=changed, record=record)
    arguments = ["harden", "digits", "-o", str(tmp_path / "m.onnx"), "--work-dir", str(folder), "--workers", "1"]
    assert run([*arguments, *OVERRIDES]) == 0
    output = capsys.readouterr().out
    assert "members give evidence" in output
    for part in ("plain", "adversarial", "pruned", "member-robust-0", "member-l1_norm-0", "score-model"):
        assert f"{part}: reused" in output
    for title in ("purifiers under attack", "attacks"):
        assert re.search(rf"^{title}: (\d+) of \1 reused", output, re.MULTILINE), title
    reused, rows = re.search(r"^ablation: (\d+) of (\d+) reused", output, re.MULTILINE).groups()
    assert int(reused) == int(rows) - 1  # all but the classifier's before it was pruned
    assert "purifier in the chain: " in output
    for headline in (
        "label right ",
        "right or flagged ",
        "robust classifier alone",
        "What must hold of the decision: ",
    ):
        assert headline in output
    after = open_model_file(tmp_path / "m.onnx").manifest
    assert (after.weights_sha256, after.graph_sha256) == (before.weights_sha256, before.graph_sha256)
    assert after.members == before.members
    assert after.purifier == before.purifier

    assert run([*arguments, *OVERRIDES]) == 0
    output = capsys.readouterr().out
    for title in ("purifiers under attack", "attacks", "ablation"):
        assert re.search(rf"^{title}: (\d+) of \1 reused", output, re.MULTILINE), title


def again(hardened: Path, folder: Path, *more: str) -> Path:
    """The same recipe hardened once more, with changes, from the parts that are there."""
    shutil.copytree(hardened.with_name("model.onnx.training"), folder / "work")
    path = folder / "m.onnx"
    arguments = ["harden", "digits", "-o", str(path), "--work-dir", str(folder / "work"), "--workers", "1"]
    assert run([*arguments, *OVERRIDES, *more]) == 0
    return path


def test_validation_exports_the_row_that_keeps_most_images_right(
    hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = again(hardened, tmp_path, "--choose", "validation", "--set", 'choice.settings=[{mode=["full"],rho=[0.0]}]')
    output = capsys.readouterr().out
    before, purifier = open_model_file(hardened).manifest.purifier, open_model_file(path).manifest.purifier
    choice = purifier.choice
    assert choice is not None
    assert choice.by == "validation"
    assert len(choice.rows) == 4
    assert "4 of 5 reused" in output
    chosen = choice.rows[choice.chosen]
    for row in choice.rows:
        better = (chosen.adaptive_accuracy, -chosen.network_passes) >= (row.adaptive_accuracy, -row.network_passes)
        assert better, row
    assert (chosen.sigmas, chosen.mode, chosen.rho) == (purifier.sigmas, purifier.mode, purifier.rho)
    same = (before.sigmas, before.mode, before.rho) == (purifier.sigmas, purifier.mode, purifier.rho)
    assert bool(re.search(r"^attacks: (\d+) of \1 reused", output, re.MULTILINE)) is same
    assert " ".join(choice.reason.split()) in " ".join(output.split())


def test_a_decision_can_switch_the_purifier_off_and_leave_sensors_out(hardened: Path, tmp_path: Path) -> None:
    changes = ("--set", 'decision.purify="off"', "--set", 'decision.sensors_see="nothing"')
    path = again(hardened, tmp_path, *changes, *ONE_ATTACK)
    manifest = open_model_file(path).manifest
    choice = manifest.purifier.choice
    assert choice is not None
    assert (manifest.decision.purify, manifest.purifier.off, choice.by) == ("off", True, "decision")
    assert choice.rows[choice.chosen].off
    assert {member.role for member in manifest.members} == {"juror"}
    assert choice.reason.startswith("The decision, chosen afterwards, purifies nothing, so the purifier is off.")
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(DefendedClassifier.load(path, device="cpu")(images).purified, images)


def test_the_sweep_alone_goes_on_from_the_work_folder_and_writes_its_table(
    hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(hardened.with_name("model.onnx.training"), tmp_path / "work")
    target = tmp_path / "table.json"
    arguments = ["digits", "--work-dir", str(tmp_path / "work"), "--workers", "1", *OVERRIDES, "--json", str(target)]
    assert run([*arguments, "--set", "choice.settings=[{radius=[0.05]}]"], sweep_alone) == 0
    choice = ChoiceRecord.model_validate_json(target.read_bytes())
    recorded = open_model_file(hardened).manifest.purifier.choice
    assert recorded is not None
    assert [row.radius for row in choice.rows[:4]] == [0.0, 0.15, 0.15, 0.05]
    assert choice.rows[0].oblivious_accuracy == recorded.rows[0].oblivious_accuracy
    output = capsys.readouterr().out
    assert "4 of 5 reused" in output
    assert choice.reason in output
    assert run([*arguments, "--set", "choice.samples=3"], sweep_alone) == 2
    assert "samples starts at 10" in capsys.readouterr().err


def test_a_purifier_that_is_off_leaves_images_as_they_are_and_is_measured_as_off(
    hardened: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = again(
        hardened, tmp_path, "--set", "purifier.steps=0", "--set", 'export.precision.purifier="float16"', *ONE_ATTACK
    )
    output = capsys.readouterr().out
    purifier = open_model_file(path).manifest.purifier
    assert purifier.off
    assert purifier.precision == "float32", "it computes nothing"
    assert "jury only" in output
    assert "full, no purifier" not in output
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    verdicts = DefendedClassifier.load(path, device="cpu")(images)
    assert np.array_equal(verdicts.purified, images)
    assert not verdicts.reconstruction_error.any()
    assert run(["inspect", str(path)]) == 0
    assert "off: the image itself is classified" in capsys.readouterr().out


@pytest.mark.parametrize(("precision", "flips"), [("float16", 0.05), ("int8", 0.3)])
def test_the_recipe_may_ask_for_less_precision_and_what_it_changes_is_in_the_manifest(
    precision: str,
    flips: float,
    hardened: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reduced, "ADAPTIVE", replace(reduced.ADAPTIVE, steps=1, cheap_steps=1))
    monkeypatch.setattr(reduced, "MOST_ADAPTIVE", 4)
    monkeypatch.setattr(harden, "evaluate_file", partial(evaluate_file, ablation=False))  # other tests look at it
    allowed = ("--set", f"export.max_flips={flips}")  # networks that were hardly trained lie near their thresholds
    stages = f'export.precision={{purifier="float16", classifier="{precision}", members="{precision}"}}'
    path = again(hardened, tmp_path, "--set", stages, *allowed, *ONE_ATTACK)
    whole, half = open_model_file(hardened), open_model_file(path)
    assert (whole.manifest.purifier.precision, half.manifest.purifier.precision) == ("float32", "float16")
    sizes = [stage_sizes(file.proto)[PURIFIER].size_bytes for file in (whole, half)]
    assert sizes[1] < 0.7 * sizes[0], "half the bytes but for norms and the bank"
    images = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
    purified = [DefendedClassifier.load(file, device="cpu")(images).purified for file in (hardened, path)]
    assert 0 < np.abs(purified[0] - purified[1]).max() < 0.01
    record = half.manifest.precision
    assert record is not None
    assert record.classifier == precision
    assert {member.precision for member in half.manifest.members} == {precision}
    assert whole.manifest.precision is None
    compared = record.comparison
    assert compared is not None
    assert max(compared.label_flips, compared.flag_flips) <= flips * compared.samples
    assert abs(compared.reduced.clean_accuracy - compared.float32.clean_accuracy) <= flips
    assert compared.reduced.size_bytes == (tmp_path / "work" / "unmeasured" / path.name).stat().st_size
    assert compared.reduced.size_bytes < compared.float32.size_bytes
    assert compared.reduced.milliseconds is not None
    assert compared.float32.milliseconds is not None
    assert compared.adaptive_samples == 4
    assert compared.reduced.adaptive_accuracy is not None, "through the twin, which rounds as the file does"
    capsys.readouterr()
    assert run(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"classifier {precision}, members: 6 {precision}; against float32, of" in said
    assert verify_file(path).sound


def test_evaluate_writes_the_documented_json(hardened: Path, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    report, badge = tmp_path / "report.html", tmp_path / "badge.json"
    written = ["--json", target, "--report", report, "--badge", badge]
    names = "fgsm,pgd,square,unrolled-pgd"
    arguments = ["evaluate", hardened, "--recipe", "digits", "--samples", "10", "--attacks", names, *written]
    arguments += ["--ablation", "off"]
    assert run([str(argument) for argument in (*arguments, "--work-dir", tmp_path / "kept", "--workers", "1")]) == 0
    figures = json.loads(target.read_bytes())
    for system in (figures, figures["bare"]):
        assert set(system["clean"]) >= {"accuracy", "flagged", "members_used"}
        assert 0.0 <= system["worst_case"]["robust_accuracy"] <= 1.0
        assert set(system["attacks"]) == {"fgsm", "pgd", "unrolled-pgd", "square"}
        for attack in system["attacks"].values():
            assert set(attack) >= {"attack_success", "flagged", "corrected", "members_used"}
        union = 1.0 - system["worst_case"]["robust_accuracy"]
        assert union >= max(attack["attack_success"] for attack in system["attacks"].values()) - 1e-9
    assert report.read_text().startswith("<!doctype html>")
    rows = json.loads(badge.read_bytes())["measured"]
    assert rows[-1]["robust_accuracy"] == figures["worst_case"]["robust_accuracy"]
    assert [row["attack"] for row in rows] == ["clean", "fgsm", "pgd", "square", "unrolled-pgd", "worst case"]


def test_evaluate_suggests_the_nearest_attack(hardened: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(hardened), "--recipe", "digits", "--attacks", "clean,sqare", "--samples", "10"]) == 2
    assert "did you mean square" in capsys.readouterr().err
