import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.export.small_recipe import OVERRIDES

from s2ap_train.statistics.paired import mcnemar

LITTLE = {
    "decision_choice.samples": 10,
    "decision_choice.steps": 1,
    "decision_choice.purify": "[]",
    "decision_choice.signals": "[]",
}


def start(work: Path, *more: str) -> Result:
    from decision import main

    parts = ["--checkpoints", str(work / "trained")] if (work / "trained").exists() else []
    sets = [part for key, value in LITTLE.items() for part in ("--set", f"{key}={value}")]
    few = ["--samples", "10", "--policies", "off", "--mixes", "0.9:3", "--workers", "1", "--work-dir", str(work)]
    return CliRunner().invoke(main, ["digits", *few, *parts, *more, *OVERRIDES, *sets])


@pytest.fixture(scope="module")
def measured(
    benchmarks: None, small_parts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result, dict[str, Any]]:
    work = tmp_path_factory.mktemp("decision")
    shutil.copytree(small_parts, work / "trained")
    result = start(work, "--json", str(work / "out.json"))
    assert result.exit_code == 0, result.output
    return work, result, json.loads((work / "out.json").read_text())


def systems(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in document["runs"][0]["systems"]}


def test_every_answer_stands_beside_r_and_r_at_its_own_false_alarms(
    measured: tuple[Path, Result, dict[str, Any]],
) -> None:
    _, _, document = measured
    found = systems(document)
    answers = [f"{answer}, off" for answer in ("robust", "mixed", "accurate")]
    assert {"classifier alone", "r", "jury, never flagged", "chosen mix, never flagged", *answers} <= set(found)
    assert any(key.startswith("0.1 classifier + 0.9 jury^3") for key in found)
    for key in answers:
        against = found[key]["against"]
        assert against["label right"]["baseline"] == against["clean accuracy"]["baseline"] == "r"
        sure = found[against["right or flagged"]["baseline"]]
        # of r nothing abstains; confidences that tie at the threshold are all flagged
        assert sure["clean_flagged"] >= found[key]["clean_flagged"]
        assert sure["label_right"] == found["r"]["label_right"]
        assert against["label right"]["before"] == found["r"]["label_right"]
        assert against["right or flagged"]["after"] == found[key]["right_or_flagged"]
        effect = against["label right"]
        assert effect["p_value"] == pytest.approx(mcnemar(effect["lost"], effect["gained"]), abs=1e-5)


def test_no_system_is_attacked_with_less_work_than_the_longest_plan(
    measured: tuple[Path, Result, dict[str, Any]],
) -> None:
    _, _, document = measured
    least = document["runs"][0]["effort"]
    for one in systems(document).values():
        assert one["work"][0] >= least["descents"], one["key"]
        assert one["work"][1] >= least["steps"], one["key"]
        assert one["label_right"] <= one["right_or_flagged"]
        assert one["label_right"] <= one["clean"]
        if not one["flag"]:
            assert one["label_right"] == one["right_or_flagged"]
            assert one["clean_flagged"] == 0.0


def test_the_table_has_the_figures_of_the_document_and_a_second_start_attacks_nothing_and_adds_another_seed(
    measured: tuple[Path, Result, dict[str, Any]],
) -> None:
    work, first, document = measured
    (row,) = [line for line in first.output.splitlines() if line.startswith("| r ") and "r least" not in line]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    r = systems(document)["r"]
    assert cells[3:7] == [
        f"{100 * r[name]:.1f}" for name in ("clean", "clean_flagged", "label_right", "right_or_flagged")
    ]
    before = {path: path.stat().st_mtime_ns for path in work.rglob("found/*")}
    assert before
    other = document | {"runs": [run | {"seed": 7, "first": 70} for run in document["runs"]]}
    (work / "seed7.json").write_text(json.dumps(other))
    again = start(work, "--add", str(work / "seed7.json"), "--json", str(work / "both.json"))
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in work.rglob("found/*")} == before
    both = json.loads((work / "both.json").read_text())
    assert both["runs"] == [*document["runs"], *other["runs"]]
    (found,) = (one for one in both["over_seeds"] if one["key"] == "robust, off")
    effect = systems(document)["robust, off"]["against"]["label right"]
    pooled = found["pooled"]["label right"]
    assert (pooled["samples"], pooled["gained"], pooled["lost"]) == (20, 2 * effect["gained"], 2 * effect["lost"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": "full"}, "was measured with another recipe or budget"),
        ({}, "is measured twice; name it once"),
        ({"runs": [{"seed": 7, "samples": 99}]}, "has 99 test images for seed 7, --samples says 10"),
        ({"runs": None}, "holds no figures of this benchmark"),
    ],
)
def test_figures_that_cannot_be_pooled_are_refused(
    measured: tuple[Path, Result, dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    work, _, document = measured
    (work / "other.json").write_text(json.dumps(document | change))
    result = start(work, "--add", str(work / "other.json"))
    assert result.exit_code == 1
    assert message in result.output


def seed_run(first: int, *rights: tuple[str, float, float]) -> dict[str, Any]:
    """What one seed gives: of 100 images each system gains what it has more than its baseline and loses none."""
    figures = dict.fromkeys(("clean", "clean_flagged", "right_or_flagged", "cost", "members_used"), 1.0)
    systems = []
    for key, before, after in rights:
        effect = {"samples": 100, "before": before, "after": after, "difference": after - before, "interval": [0, 0]}
        effect |= {"lost": 0, "gained": round(100 * (after - before)), "p_value": 1.0}
        costs = {"member_flops": [25, 10], "classifier_flops": 100}
        systems.append({"key": key, "label_right": after, "against": {"label right": effect}} | figures | costs)
    return {"first": first, "systems": systems}


def test_differences_over_seeds_are_of_systems_that_all_seeds_have(benchmarks: None) -> None:
    from decision_seeds import over_seeds

    runs = [
        seed_run(0, ("a", 0.5, 0.6), ("b", 0.5, 0.5)),
        seed_run(0, ("a", 0.4, 0.6)),
        seed_run(0, ("a", 0.6, 0.9), ("b", 0.5, 0.5)),
    ]
    (found,) = over_seeds(runs)
    assert found["key"] == "a"
    assert found["label_right"] == pytest.approx(0.7)
    effect = found["differences"]["label right"]
    # .1, .2 and .3: mean .2, sample deviation .1, Student's 97.5 % point with 2 degrees of freedom 4.3027
    assert effect["mean"] == pytest.approx(0.2)
    assert effect["interval"] == pytest.approx((0.2 - 4.3027 * 0.1 / 3**0.5, 0.2 + 4.3027 * 0.1 / 3**0.5), abs=1e-4)
    assert "pooled" not in found  # they share their test images
    assert over_seeds(runs[:1]) == []


def test_seeds_with_images_of_their_own_are_pooled_and_what_must_hold_is_said_of_all(benchmarks: None) -> None:
    from decision_seeds import over_seeds, requirements

    runs = [seed_run(100 * i, ("robust, off", 0.5, 0.5 + gain)) for i, gain in enumerate((0.02, 0.03, 0.04))]
    (found,) = over_seeds(runs)
    effect = found["pooled"]["label right"]
    assert (effect["samples"], effect["lost"], effect["gained"]) == (300, 0, 9)
    assert effect["difference"] == pytest.approx(0.03)
    assert effect["p_value"] == pytest.approx(2 * 0.5**9)
    lines = {one.line: one.holds for one in requirements(found | {"against": found["pooled"]})}
    assert lines["label right: above 'robust classifier alone'"] is True
    assert lines["clean accuracy: not below 'robust classifier alone'"] is None  # it was not measured
    (cheap,) = (holds for line, holds in lines.items() if line.startswith("a member costs"))
    assert cheap is True
    alone = requirements(runs[0]["systems"][0])
    assert alone[0].holds is None  # two images of 100 tell nothing
    assert requirements({"key": "r"}) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policies", "never"), "policy 'never' is not known; choose from always, suspicious, off"),
        (("--answers", "natural"), "answer 'natural' is not known; choose from robust, mixed, accurate"),
        (("--mixes", "0.8"), "is no list of SHARE:AMPLIFICATION"),
        (("--seed", "0", "--seed", "1", "--checkpoints", "x"), "--checkpoints holds the networks of one seed"),
        (("--add", "missing.json"), "missing.json holds no figures of this benchmark"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    benchmarks: None, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = start(tmp_path / "work", *options)
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "work").exists()
