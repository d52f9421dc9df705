import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.train.made_evaluation import MASKED, PASSED, WEAK, attack, made_evaluation

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.errors import ModelFileError
from s2ap_defend.golden_record import read_golden
from s2ap_defend.model_file import open_model_file
from s2ap_defend.verification.golden import write_with_golden
from s2ap_train.redteam.report.badge import badge_of, measurements, write_measured
from s2ap_train.redteam.results import Evaluation


def of_file(path: Path, **changes: object) -> Evaluation:
    evaluation = made_evaluation(**changes)
    found = open_model_file(path).manifest.weights_sha256
    return replace(evaluation, configuration=replace(evaluation.configuration, weights_sha256=found))


def test_the_manifest_gets_clean_images_the_attacks_of_the_headline_and_the_worst_case():
    rows = {row.attack: row for row in measurements(made_evaluation())}
    # attacks on members and test have no figure of the bare classifier; other norms and goals are no l_inf figures
    assert list(rows) == [
        *("clean", "noise", "fgsm", "pgd", "transfer-ensemble", "square", "apgd-ce", "unrolled-pgd", "worst case")
    ]
    assert rows["clean"].bare_accuracy == 119 / 120
    assert rows["clean"].eps == 0.0
    assert rows["pgd"].robust_accuracy == 1 - 4 / 120
    assert rows["pgd"].bare_accuracy == 1 - 111 / 120
    assert rows["clean"].label_accuracy == 118 / 120
    assert rows["pgd"].label_accuracy == attack("pgd", 4).defended.label_accuracy
    assert rows["worst case"].label_accuracy == 106 / 120
    assert rows["worst case"].robust_accuracy == 110 / 120
    assert rows["worst case"].bare_accuracy == 3 / 120
    assert rows["worst case"].eps == 0.15


def test_the_worst_case_is_flagged_as_under_the_strongest_attack_on_all_images():
    def flagged(share: float, name: str, wins: int, samples: int = 120) -> object:
        row = attack(name, wins, samples=samples)
        return replace(row, defended=replace(row.defended, flagged=share))

    rows = measurements(
        made_evaluation(
            attacks=(flagged(0.1, "a", 5), flagged(0.2, "b", 9), flagged(0.3, "c", 9), flagged(0.4, "d", 50, 60))
        )
    )
    assert rows[-1].flagged == 0.3
    assert {row.attack: row.samples for row in rows}["d"] == 60


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"attacks": (attack("pgd", 4, knows="classifier"), attack("agreement", 9, samples=60))}, ["pgd", "agreement"]),
        ({"attacks": (attack("false-alarm", 9, goal="false alarm"), attack("square", 4, knows="answers"))}, ["square"]),
        ({"attacks": (attack("apgd-ce", 4),), "checks": (PASSED, WEAK)}, ["apgd-ce"]),
        ({"attacks": (attack("apgd-ce", 4),), "checks": (PASSED, MASKED)}, []),
        ({"attacks": (attack("apgd-ce", 4),), "checks": ()}, ["apgd-ce", "worst case"]),
    ],
)
def test_no_worst_case_without_an_attacker_who_knows_everything_or_behind_a_failed_check(changes, left):
    assert [row.attack for row in measurements(made_evaluation(**changes))] == ["clean", *left]


def test_a_badge_has_the_keys_of_shields_alone_and_its_rows_beside_them():
    document = json.loads(json.dumps(badge_of(made_evaluation()), allow_nan=False))
    assert document["shields"] == {
        "schemaVersion": 1,
        "label": "adaptive attacks, l_inf 0.15",
        "message": "88.3% right (81-93), 91.7% right or flagged (85-96)",
        "color": "blue",
    }
    assert document["measured"][-1]["attack"] == "worst case"
    assert document["measured"][-1]["robust_accuracy"] == 110 / 120
    assert document["headline"].startswith("worst case of 12 attacks, 120 images")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checks": (PASSED, MASKED)}, "no measure: gradients are masked"),
        ({"checks": (WEAK,)}, "doubtful"),
        ({"checks": ()}, "incomplete"),
    ],
)
def test_a_badge_gives_no_figure_that_a_failed_check_has_spoiled(changes, message):
    shields = badge_of(made_evaluation(**changes))["shields"]
    assert shields["message"] == message
    assert "%" not in shields["message"]
    assert shields["color"] != "blue"


def test_a_file_that_gets_its_figures_keeps_its_golden_answers(tiny_model_path: Path, tmp_path: Path):
    file, answered = open_model_file(tiny_model_path), tmp_path / "answered.onnx"
    write_with_golden(file.proto, file.manifest, answered)
    write_measured(answered, tmp_path / "measured.onnx", of_file(answered))
    golden = [read_golden(onnx.load(tmp_path / name)) for name in ("answered.onnx", "measured.onnx")]
    assert golden[0] is not None
    assert golden[0] == golden[1]


def test_a_file_gets_its_figures_and_answers_as_before(
    tiny_model_path: Path, tmp_path: Path, random_images: np.ndarray, capsys: pytest.CaptureFixture[str]
):
    evaluation, output = of_file(tiny_model_path), tmp_path / "measured.onnx"
    before = tiny_model_path.read_bytes()
    write_measured(tiny_model_path, output, evaluation)
    assert tiny_model_path.read_bytes() == before
    old, new = open_model_file(tiny_model_path), open_model_file(output)
    assert new.manifest.measured == measurements(evaluation)
    assert new.manifest.model_copy(update={"measured": ()}) == old.manifest
    assert new.proto.graph == old.proto.graph
    first, second = (DefendedClassifier.load(path, device="cpu")(random_images) for path in (tiny_model_path, output))
    for name in first.FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert run(["inspect", str(output)]) == 0
    assert "worst case" in capsys.readouterr().out


def test_the_evaluated_file_stays_as_it_is(tiny_model_path: Path, tmp_path: Path):
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model_path.read_bytes())
    (tmp_path / "link.onnx").symlink_to(model)
    for output in (model, tmp_path / "link.onnx", tmp_path / "." / "model.onnx"):
        with pytest.raises(ModelFileError, match="is the file that was evaluated and stays as it is; name another"):
            write_measured(model, output, of_file(model))
    assert model.read_bytes() == tiny_model_path.read_bytes()


def test_figures_of_another_file_are_refused(tiny_model_path: Path, tmp_path: Path):
    with pytest.raises(ModelFileError, match=r"the evaluation is of abababababab\.\.\.; evaluate this file again"):
        write_measured(tiny_model_path, tmp_path / "measured.onnx", made_evaluation())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"checks": (WEAK,)}, "Doubtful: the attack was too weak"),
        ({"checks": ()}, "Incomplete: the attack was not checked"),
        ({"attacks": (attack("pgd", 4, knows="classifier"),)}, "Incomplete: no attacker that knows the defence"),
    ],
)
def test_figures_that_decide_nothing_do_not_go_into_a_file(tiny_model_path, tmp_path, changes, title):
    with pytest.raises(ModelFileError, match=f"figures of .* do not go into a file. {title}: "):
        write_measured(tiny_model_path, tmp_path / "measured.onnx", of_file(tiny_model_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_masked_defence_gets_no_figures_into_its_manifest(tiny_model_path: Path, tmp_path: Path):
    evaluation = of_file(tiny_model_path, checks=(MASKED,))
    with pytest.raises(ModelFileError, match=r"do not go into a file\. Masked gradients: the figures are no measure: "):
        write_measured(tiny_model_path, tmp_path / "measured.onnx", evaluation)
    assert list(tmp_path.iterdir()) == []
