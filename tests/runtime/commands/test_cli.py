import io
import json
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from tests.runtime.manifest_data import decision_data

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.decision_tables import decision_table
from s2ap_defend.commands.main import run
from s2ap_defend.manifest import Manifest, PurifierSettings, TestTables
from s2ap_defend.model_file import ModelFile, open_model_file, write_model_file
from s2ap_defend.sequential import asked_members


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail: exit code 2 and one line on standard error, which is returned."""
    assert run([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("Error: ")
    return captured.err


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(path)
    return path


def test_classify_prints_json_that_equals_the_library(
    tiny_model_path: Path, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "three.npy", images)
    assert run(["classify", str(tiny_model_path), str(digit), str(tmp_path / "three.npy"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    verdicts = DefendedClassifier.load(tiny_model_path, device="cpu")(images)
    assert [Path(row["file"]).name for row in rows] == ["digit.png", "three.npy", "three.npy", "three.npy"]
    assert [row["label"] for row in rows[1:]] == verdicts.label.tolist()
    assert [row["adversarial"] for row in rows[1:]] == verdicts.adversarial.tolist()
    assert [row["votes"] for row in rows[1:]] == verdicts.votes.tolist()


def test_classify_prints_a_row_for_every_image(
    tiny_model_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["classify", str(tiny_model_path), str(digit), "--device", "cpu"]) == 0
    assert "digit.png" in capsys.readouterr().out


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


def test_classify_says_where_there_is_no_answer(
    abstaining_model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).random((32, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "images.npy", images)
    verdicts = DefendedClassifier.load(abstaining_model_path, device="cpu")(images)
    command = ["classify", str(abstaining_model_path), str(tmp_path / "images.npy"), "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    assert [row["abstained"] for row in json.loads(capsys.readouterr().out)] == verdicts.abstained.tolist()
    assert run(command) == 0
    text = capsys.readouterr().out
    assert text.count("no answer") == verdicts.abstained.sum()
    assert text.count("undecided") == (verdicts.abstained & ~verdicts.adversarial).sum() > 0
    assert text.count("adversarial") == verdicts.adversarial.sum() > 0


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


def test_a_model_without_defence_is_refused_by_every_command(
    tmp_path: Path, digit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    answer = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "plain", [value], [answer])
    plain = tmp_path / "plain.onnx"
    onnx.save_model(helper.make_model(graph), plain)
    for arguments in (["classify", plain, digit], ["inspect", plain], ["serve", plain, "--port", "0"]):
        assert "s2ap-defend harden" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"\x89PNG nonsense", "x.png", "no PNG, JPEG, WebP or BMP image"),
        (None, "x.png", "cannot be read"),
        (np.zeros((1, 1, 8, 8)), "x.npy", "float64"),
        (np.zeros((1, 3, 8, 8), np.float32), "x.npy", "expected float32 [N, 1, 8, 8]"),
        (np.zeros((0, 1, 8, 8), np.float32), "x.npy", "empty"),
        (np.full((1, 1, 8, 8), np.nan, np.float32), "x.npy", "NaN"),
        (np.full((1, 1, 8, 8), 2.0, np.float32), "x.npy", "[0, 1]"),
    ],
)
def test_bad_images_are_refused_with_one_line(
    tiny_model_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: bytes | np.ndarray | None,
    name: str,
    message: str,
) -> None:
    path = tmp_path / name
    if isinstance(content, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, content)
        content = buffer.getvalue()
    if content is not None:
        path.write_bytes(content)
    assert message in refused(capsys, "classify", tiny_model_path, path)


def test_unknown_commands_and_options_suggest_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'classify'?" in refused(capsys, "clasify")
    assert "--jsn" in refused(capsys, "inspect", "x.onnx", "--jsn")


def test_a_port_in_use_is_named(tiny_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert str(port) in refused(capsys, "serve", tiny_model_path, "--port", str(port), "--device", "cpu")


def test_an_address_that_others_reach_needs_insecure(tiny_model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--insecure" in refused(capsys, "serve", tiny_model_path, "--host", "0.0.0.0")  # noqa: S104


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
