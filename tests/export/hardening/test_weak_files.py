"""A run that cannot make the file that was asked for makes a weaker one and says what is weak, unless it is strict."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.export.defended_files import DECISION, MEMBERS, PURIFICATION, TABLES, write_untrained
from tests.export.small_recipe import OVERRIDES
from tests.train.few_images import write_npz
from tests.train.made_evaluation import made_evaluation

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import WeaknessRecord
from s2ap_defend.model_file import open_model_file, write_model_file
from s2ap_export.hardening.precision import is_half
from s2ap_export.hardening.purifier_stage import check_purifier, exported_purifier
from s2ap_train.calibration import Weakness
from s2ap_train.purifier import UNet
from s2ap_train.recipe import load_recipe
from s2ap_train.redteam.report.console import print_evaluation, to_json
from s2ap_train.redteam.report.page import evaluation_page

SAID = tuple(
    WeaknessRecord(part=part, text=f"too few for the {part}")
    for part in ("evidence", "boundary", "answer")  # type: ignore[arg-type]
)


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A file that never flags, as one without evidence is."""
    path = tmp_path / "silent.onnx"
    tables = TABLES.model_copy(
        update={
            "kind": "none: no evidence could be fitted, nothing is flagged",
            "increments": ((0.0, 0.0, 0.0),) * MEMBERS,
            "lower": (None, *(float(np.nextafter(np.inf, 0)),) * (MEMBERS - 1)),
            "upper": (None,) * MEMBERS,
            "truncation": "clean",
            "signals": (),
        }
    )
    write_untrained(path, tables, DECISION, PURIFICATION)
    file = open_model_file(path)
    write_model_file(file.proto, file.manifest.model_copy(update={"weaknesses": SAID}), path)
    return path


def test_a_file_without_evidence_answers_flags_nothing_and_says_why(
    silent: Path, random_images: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = DefendedClassifier.load(silent, device="cpu")(random_images[:40])
    assert not verdicts.adversarial.any()
    assert (verdicts.members_used == 2).all()
    assert run(["inspect", str(silent)]) == 0
    assert "weak    too few for the evidence" in capsys.readouterr().out


def test_calibrating_it_again_says_what_it_lacks(silent: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(silent), "--data", "digits", "--calibrate-on", "all", "--alpha", ".1"]) == 2
    assert "6 members can say at most 0.00 nats" in capsys.readouterr().err


def test_new_boundaries_and_another_answer_are_no_longer_weak(tiny_model_path: Path, tmp_path: Path) -> None:
    weak, new = tmp_path / "weak.onnx", tmp_path / "new.onnx"
    file = open_model_file(tiny_model_path)
    write_model_file(file.proto, file.manifest.model_copy(update={"weaknesses": SAID}), weak)
    calibrate = ["calibrate", str(weak), "--data", "digits", "--calibrate-on", "all", "--alpha", ".1", "-o", str(new)]
    for more, left in (([], ["evidence", "answer"]), (["--answer", "robust"], ["evidence"])):
        assert run([*calibrate, *more]) == 0
        assert [one.part for one in open_model_file(new).manifest.weaknesses] == left


def test_a_file_that_is_not_weak_has_no_such_key(tiny_model_path: Path) -> None:
    assert "weaknesses" not in json.loads(open_model_file(tiny_model_path).manifest.to_json())


def test_terminal_page_and_json_say_what_is_weak() -> None:
    evaluation = made_evaluation()
    said = ("an <odd> weakness",)
    evaluation = replace(evaluation, configuration=replace(evaluation.configuration, weaknesses=said))
    print_evaluation(evaluation, Console(file=(told := io.StringIO()), width=100))
    assert "What is weak in the file" in told.getvalue()
    page = evaluation_page(evaluation)
    assert page.index("What is weak</h2>") < page.index("Against simpler alternatives</h2>")
    assert "an &lt;odd&gt; weakness" in page
    assert to_json(evaluation)["configuration"]["weaknesses"] == list(said)
    assert "What is weak" not in evaluation_page(made_evaluation())


def test_a_purifier_that_cannot_be_is_refused_before_its_score_model_is_trained(random_images: np.ndarray) -> None:
    assert check_purifier(load_recipe("digits"), random_images[:8]).startswith("24 passes of 3.17 MFLOPs")
    assert check_purifier(load_recipe("digits", ["purifier.steps=0"]), random_images[:8]) == "nothing is purified"
    with pytest.raises(RecipeError, match="gives purified that is not finite"):
        check_purifier(load_recipe("digits", ["purifier.rho=1e30"]), random_images[:8])


def test_a_purifier_that_float16_cannot_hold_is_written_in_float32(random_images: np.ndarray) -> None:
    recipe = load_recipe("digits", ['export.precision="float16"', "purifier.steps=1"])
    network = UNet(1, 8, (1, 2), seed=0).eval()
    assert is_half(exported_purifier(recipe, network, random_images[:8]))
    network.down_blocks[0].convolution1.weight.data[0, 0, 0, 0] = 7e4
    found: list[Weakness] = []
    assert not is_half(exported_purifier(recipe, network, random_images[:8], found.append))
    assert [one.instead for one in found] == ["the purifier is in float32"]
    with pytest.raises(RecipeError, match="float16 ends at 65504"):
        exported_purifier(recipe, network, random_images[:8])


SHORT = (
    'decision.answer="robust"',
    "detection.bins=4",
    "members.random_channel.count=0",
    'evaluation.attacks="fgsm,unrolled-pgd"',
    "evaluation.samples=10",
    "decision_choice={samples=10, steps=1, opening=[], jurors_see=[], sensors_see=[], purify=[], signals=[]}",
    "decision_choice.jury_shares=[0.8]",
    "decision_choice.amplifications=[3.0]",
    "decision_choice.juror_weights=[0.25]",
)


def harden(folder: Path, sizes: str, *options: str) -> int:
    """A jury of networks that were trained too little to answer much, on 220 images of two classes."""
    data = write_npz(folder / "data.npz", [110, 110])
    table = f'data={{source="npz", root="{data}", validation=20, test_limit=20, {sizes}}}'
    changes = [word for change in (*SHORT, table) for word in ("--set", change)]
    common = ["harden", "digits", "-o", str(folder / "m.onnx"), "--workers", "1", "--choose", "unmeasured"]
    return run([*common, *OVERRIDES, *changes, *options])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "part", "lacks", "instead"),
    [
        ("fit=30, calibration=50", "evidence", "calibration needs 20 clean inputs", "nothing is flagged"),
        ("fit=60, calibration=19", "boundary", "a false-alarm rate of 0.05 needs 19", "so alpha is 0."),
    ],
)
def test_harden_makes_a_weaker_file_and_says_so_and_refuses_it_where_it_is_strict(
    sizes: str, part: str, lacks: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harden(tmp_path, sizes, "--strict") == 2
    error = capsys.readouterr().err
    assert lacks in error or "which is chance" in error  # a juror that learned nothing is refused before
    assert error.count("\n") == 1
    assert not (tmp_path / "m.onnx").exists()
    assert harden(tmp_path, sizes) == 0
    said = capsys.readouterr().out
    weaknesses = open_model_file(tmp_path / "m.onnx").manifest.weaknesses
    (weakness,) = (one for one in weaknesses if one.part == part)
    assert lacks in weakness.text
    assert instead in weakness.text
    assert f"weak: {weakness.text}" in said
    assert "What is weak</h2>" in (tmp_path / "m.onnx.html").read_text()
