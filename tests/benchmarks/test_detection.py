import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

FEW = {
    "model.widths": "[8, 8, 16]",
    "members.robust.count": 2,
    "members.robust.models": '[{name = "small_cnn", widths = [8, 8, 16]}]',
    "members.robust.pretraining.epochs": 2,
    "members.robust.pruning.training.epochs": 2,
    "members.robust.finetune.epochs": 1,
    "members.fresh_channel.count": 0,
    "members.l1_norm.count": 0,
    "members.random_channel.count": 2,
    "members.random_channel.settings.training.epochs": 2,
}


def start(work: Path, *more: str) -> Result:
    from detection import main

    sets = [part for key, value in FEW.items() for part in ("--set", f"{key}={value}")]
    few = ["--families", "robust,random_channel,mutation", "--members", "2", "--paper-members", "4", "--samples", "60"]
    return CliRunner().invoke(main, ["digits", "--work-dir", str(work), "--workers", "1", *few, *more, *sets])


@pytest.fixture(scope="module")
def measured(benchmarks: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, dict[str, Any]]:
    work = tmp_path_factory.mktemp("detection")
    result = start(work, "--attacks", "fgsm,pgd", "--json", str(work / "out.json"), "--plot", str(work / "p.png"))
    assert result.exit_code == 0, result.output
    return work, result, json.loads((work / "out.json").read_text())


def test_every_family_and_the_mix_has_its_figures_under_every_attack(
    measured: tuple[Path, Result, dict[str, Any]],
) -> None:
    _, _, document = measured
    assert set(document["groups"]) | set(document["refused"]) >= {"robust", "random_channel", "mix"}
    mix = document["groups"]["mix"]
    assert mix["members"] == 4
    assert document["mix"] == {"robust": 2, "random_channel": 2, "mutation": 0}
    assert set(mix["attacks"]) == {"fgsm", "pgd"}
    assert set(mix["budgets"]) == {f"{kind} {eps}" for kind in ("base", "joint") for eps in (0.05, 0.1, 0.15, 0.3)}
    pgd = mix["attacks"]["pgd"]
    reached = document["attacks"]["pgd"]
    assert pgd["fooled"] == round(reached["success"] * reached["right"])
    assert 0.5 < pgd["auroc"]["value"] <= 1
    assert pgd["detected_at_0.05"]["value"] >= pgd["detected_at_0.01"]["value"]
    assert 1 <= pgd["decided_after"] <= pgd["members_used"] <= 4


def test_the_papers_test_asks_as_many_members_as_there_are(measured: tuple[Path, Result, dict[str, Any]]) -> None:
    _, _, document = measured
    assert set(document["paper"]) == {"random_channel", "mutation"}
    assert {found["members"] for found in document["paper"].values()} == {4}
    matched = document["mix_against_paper"]["random_channel"]
    assert matched["false_alarm_rate"] == document["paper"]["random_channel"]["clean"]["false_alarms"]["value"]
    pgd = matched["pgd"]
    assert pgd["mix"]["count"] == pgd["paper"]["count"]
    assert pgd["difference"] == pytest.approx(pgd["mix"]["value"] - pgd["paper"]["value"])
    assert pgd["low"] <= pgd["difference"] <= pgd["high"]


def test_tables_print_what_the_json_holds(measured: tuple[Path, Result, dict[str, Any]]) -> None:
    _, result, document = measured
    (row,) = [line for line in result.output.splitlines() if line.startswith("| pgd ")]
    assert f"{100 * document['attacks']['pgd']['success']:.1f}" in row
    title = result.output.index("Area under the ROC curve %, inputs that fool the base")
    row = next(line for line in result.output[title:].splitlines() if "the mix" in line)
    assert f"{100 * document['groups']['mix']['attacks']['pgd']['auroc']['value']:.1f}" in row
    assert (measured[0] / "p.png").read_bytes().startswith(b"\x89PNG")


def test_attacks_and_members_are_not_made_twice(measured: tuple[Path, Result, dict[str, Any]]) -> None:
    work, _, document = measured
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in {".npz", ".safetensors"}}
    again = start(work, "--attacks", "fgsm,pgd", "--json", str(work / "again.json"))
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((work / "again.json").read_text())["groups"] == document["groups"]


def test_an_unknown_attack_is_one_line(benchmarks: None, tmp_path: Path) -> None:
    result = start(tmp_path, "--attacks", "pgd,magic")
    assert result.exit_code == 1
    assert "attack 'magic' is not known; choose from fgsm" in result.output


def test_redrawn_boundaries_hold_where_both_parts_are_alike_and_not_where_calibration_inputs_were_known(
    benchmarks: None,
) -> None:
    from detection_groups import redrawn_false_alarms

    generator = np.random.default_rng(0)
    measuring = generator.normal(size=2000)
    found = redrawn_false_alarms(generator.normal(size=1000), measuring, seed=1)
    assert list(found) == ["0.01", "0.02", "0.05"]
    assert all(row["holds"] and row["calibration_inputs"] == 500 for row in found.values())
    assert found["0.05"]["mean"] > 0.025
    assert found["0.05"]["alike"] > 0.01
    known = redrawn_false_alarms(generator.normal(size=1000) - 1, measuring, seed=1)
    assert not any(row["holds"] for row in known.values())
    assert known["0.05"]["alike"] < 1e-6
    assert list(redrawn_false_alarms(generator.normal(size=100), measuring, seed=1)) == ["0.02", "0.05"]


def test_a_mix_without_members_is_refused_before_training(benchmarks: None, tmp_path: Path) -> None:
    from detection import main

    result = CliRunner().invoke(main, ["digits", "--work-dir", str(tmp_path / "w"), "--families", "mutation"])
    assert result.exit_code == 1
    assert "the mix is empty" in result.output
    assert not (tmp_path / "w").exists()
