"""What `inspect` says of a file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.manifest_data import decision_data

from s2ap_defend.commands.decision_tables import decision_table
from s2ap_defend.commands.main import run
from s2ap_defend.manifest import Manifest, PurifierSettings, TestTables
from s2ap_defend.model_file import ModelFile, open_model_file, write_model_file
from s2ap_defend.sequential import asked_members


def test_inspect_shows_stages_members_and_that_the_hashes_hold(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tiny_model_path)]) == 0
    text = capsys.readouterr().out
    assert "hashes verified" in text
    assert "member_005" in text
    assert run(["inspect", str(tiny_model_path), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert set(described["stages"]) >= {"purifier", "classifier", "member_000", "test"}
    assert len(described["manifest"]["members"]) == 6


def shown(capsys: pytest.CaptureFixture[str], path: Path) -> str:
    """What inspect prints of a file, with single blanks."""
    assert run(["inspect", str(path)]) == 0
    return " ".join(capsys.readouterr().out.split())


def rewritten(file: ModelFile, path: Path, **changes: Any) -> Path:
    """The file with some tables of its manifest changed, under another name."""
    write_model_file(file.proto, Manifest.model_validate(file.manifest.model_dump() | changes), path)
    return path


def test_inspect_says_who_answers_who_votes_and_what_becomes_of_the_rest(
    tiny_model_path: Path, abstaining_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        tiny_model_path: (
            "format 4",
            "0.25 classifier + 0.75 jury^2",
            "the classifier can change the answer only where jury^2 leads by less than 0.33",
            "3 of 6 members vote; every input is asked the first member",
            "after 2 members at the earliest",
            "undecided after the last member: flagged where its evidence is above 0, otherwise clean",
            "the vote of the whole jury, which ends as soon as its winner is certain",
            "every image, for the classifier and 3 of 6 members",
            "jury margin: counted before any member",
            "1 juror raw 1 untrained 0%",
            "2 juror raw 0.5 untrained 0%",
            "3 sensor purified - untrained 0%",
        ),
        abstaining_model_path: (
            "the jury: the vote of the jurors that were asked",
            "after 1 members at the earliest; undecided after the last member: not answered",
            "flagged not answered (rejected)",
            "only what the opening does not accept on the image as it came",
        ),
    }
    for path, texts in expected.items():
        text = shown(capsys, path)
        assert [one for one in texts if one not in text] == [], text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": "accurate"}, "the classifier, whatever the jury says, unless the input is flagged"),
        ({"jury_share": 0.5}, "; the classifier can outvote any jury"),
    ],
)
def test_words_say_when_the_classifier_answers_and_when_it_can_outvote_any_jury(
    changes: dict[str, object], said: str, tiny_model_path: Path
) -> None:
    manifest = open_model_file(tiny_model_path).manifest
    decision = manifest.decision.model_copy(update=changes)
    answer = next(iter(decision_table(manifest.model_copy(update={"decision": decision})).columns[1].cells))
    assert str(answer).endswith(said)


def test_inspect_shows_the_decisions_that_were_compared_and_why_one_was_taken(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(tiny_model_path)
    assert "Decisions compared" not in shown(capsys, tiny_model_path)
    decision = file.manifest.decision.model_dump() | {"frontier": decision_data()["frontier"]}
    text = shown(capsys, rewritten(file, tmp_path / "compared.onnx", decision=decision))
    assert "Decisions compared on 100 fit images, eps 0.15" in text
    assert "always" not in text  # all rows purify alike
    assert "> mixed 0.75 2 95.0% 4.0% 70.0% 80.0% 1.0 2.5x" in text
    assert "robust 93.0% 4.0% 70.0% 80.0% 1.0 2.5x" in text
    assert "It is the most accurate within the label cost." in text
    assert "To beat: the first juror alone, 69.0% label right under attack, 94.0% clean." in text
    assert "Attack: joint, for a wrong label." in text
    assert "cost in time" not in text
    decision["frontier"] |= {"cost_in": "time"}
    text = shown(capsys, rewritten(file, tmp_path / "timed.onnx", decision=decision))
    assert "Decisions compared on 100 fit images, eps 0.15, cost in time" in text


def test_inspect_shows_how_the_purifier_was_chosen(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(tiny_model_path)
    purifier = file.manifest.purifier
    unmeasured = file.manifest.model_copy(update={"purifier": purifier.model_copy(update={"choice": None})})
    write_model_file(file.proto, unmeasured, tmp_path / "unmeasured.onnx")
    assert run(["inspect", str(tmp_path / "unmeasured.onnx")]) == 0
    assert "Purifiers tried" not in capsys.readouterr().out
    settings = {key: getattr(purifier, key) for key in PurifierSettings.model_fields}
    broken = {"gradient_accuracy": 0.5, "ungraded": {"bpda": 0, "surrogate": 1, "square": None}}
    rates = {"clean_accuracy": 0.875, "oblivious_accuracy": 0.5, "p_against_rho_0": None, "milliseconds": 0.5} | broken
    on = {
        "adaptive_accuracy": 0.25,
        "adaptive_interval": (0.1, 0.5),
        "p_against_off": 0.125,
        "network_passes": purifier.passes,
    }
    off = {"adaptive_accuracy": 0.375, "adaptive_interval": (0.2, 0.6), "p_against_off": None, "network_passes": 0}
    rows = [settings | rates | off | {"steps": 0, "sigmas": ()}, settings | rates | on]
    told = {
        "reason": "It is the recipe's; off was better.",
        "attack": "gradients",
        "defended": "the classifier",
        "reference": None,
    }
    choice = {"by": "recipe", "chosen": 1, "split": "validation", "samples": 8, "eps": 0.15, "seed": 0, "rows": rows}
    changed = {
        **file.manifest.model_dump(),
        "purifier": {**purifier.model_dump(), "choice": choice | told | {"reference": None}},
    }
    write_model_file(file.proto, Manifest.model_validate(changed), tmp_path / "chosen.onnx")
    assert run(["inspect", str(tmp_path / "chosen.onnx")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Purifiers tried on 8 validation images, eps 0.15" in text
    assert "off 87.5% 37.5% - 0" in text
    assert f"87.5% 25.0% 0.12 {purifier.passes}" in text
    assert "It is the recipe's; off was better." in text


BELOW = math.nextafter(2.0, -math.inf)


@pytest.mark.parametrize(
    ("silent", "lower", "said"),
    [
        (0, (None, None, None, -1.0, -1.0, -1.0), "6 of 6 members give evidence"),
        (3, (None, None, BELOW, BELOW, BELOW, BELOW), "3 of 6 members give evidence; {} is asked exactly 3 members"),
        (2, (None, -1.0, -1.0, BELOW, BELOW, BELOW), "4 of 6 members give evidence; {} is asked at most 4 members"),
        (5, (BELOW,) * 6, "1 of 6 members give evidence; {} is asked exactly 1 member"),
    ],
)
def test_how_many_members_count_and_are_asked(
    silent: int, lower: tuple[float | None, ...], said: str, tiny_model_path: Path
) -> None:
    manifest = open_model_file(tiny_model_path).manifest
    tables = manifest.test.model_dump()
    increments = [*tables["increments"][: 6 - silent], *[[0.0] * 3] * silent]
    test = TestTables.model_validate({**tables, "increments": increments, "lower": lower, "upper": [2.0] * 6})
    told = asked_members(manifest.model_copy(update={"test": test}).to_test())
    assert told == said.format("an input that is not flagged")


def test_inspect_says_who_gives_evidence_and_that_nothing_was_measured(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(tiny_model_path)]) == 0
    text = capsys.readouterr().out
    assert "6 of 6 members give evidence" in text
    assert "no accuracy was measured with these boundaries" in text
    assert "Accuracy measured" not in text
    file = open_model_file(tiny_model_path)
    rates = {"bare_accuracy": 0.1, "robust_accuracy": 0.75, "label_accuracy": 0.5, "flagged": 0.25, "members_used": 4.0}
    row = {"attack": "worst case", "eps": 0.1, "samples": 10, **rates}
    text = shown(capsys, rewritten(file, tmp_path / "measured.onnx", measured=[row]))
    assert "Accuracy measured on this file" in text
    assert "worst case 0.1 10 10.0% 50.0% 75.0% 25.0% 4.0" in text
    assert "no accuracy was measured" not in text


def test_inspect_shows_foreign_words_as_they_are_and_lets_none_steer_the_terminal(
    tiny_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = open_model_file(tiny_model_path)
    evil = "[/foo][bold]\x1b[31m\x9b2J\n\u202e"
    data = file.manifest.model_dump()
    data["classes"] = (evil, *data["classes"][1:])
    data["members"] = tuple(member | {"method": evil} for member in data["members"])
    data["test"] |= {"kind": evil}
    data["provenance"] |= {"recipe": evil, "data": evil, "classifier": evil}
    rates = {"bare_accuracy": 0.5, "robust_accuracy": 0.5, "label_accuracy": 0.5, "flagged": 0.0, "members_used": 1.0}
    data["measured"] = ({"attack": evil, "eps": 0.1, "samples": 8} | rates,)
    data["decision"] |= {"frontier": decision_data()["frontier"] | {"split": evil, "attack": evil, "reason": evil}}
    write_model_file(file.proto, Manifest.model_validate(data), tmp_path / "evil.onnx")
    assert run(["inspect", str(tmp_path / "evil.onnx")]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x9b", "\u202e"} & {*shown}
    assert shown.count(r"[/foo][bold]\x1b[31m\x9b2J\n\u202e") >= 8
    assert "[/foo]" in shown.partition("Accuracy measured")[2]
