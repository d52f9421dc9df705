"""The tutorial on tiny data: one's own network, weights and images become a file that is used and evaluated again."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.docs.documents import blocks, commands, text_of
from tests.runtime.running_server import running

from s2ap_defend.commands.main import run
from s2ap_defend.engines.onnxruntime import OnnxRuntimeEngine
from s2ap_defend.model_file import open_model_file
from s2ap_defend.stages import CLASSIFIER, cut_stage
from s2ap_train.data import load_data
from s2ap_train.recipe import load_recipe
from s2ap_train.storage.checkpoint import load_checkpoint

TUTORIAL = text_of("tutorial.md")
NAMES = ("one", "two", "zero")
MEAN, STD = 0.5, 0.25
TINY = {
    "members.jurors.count": 1,
    "members.jurors.pretraining.epochs": 1,
    "members.jurors.pretraining.eps_warmup_epochs": 0,
    "members.jurors.finetune.epochs": 1,
    "members.jurors.pruning.training.epochs": 1,
    "members.sensors.pretraining.epochs": 1,
    "members.sensors.finetune.epochs": 1,
    "adversarial.epochs": 1,
    "pruning.training.epochs": 1,
    "finetune.epochs": 1,
    "score_model.epochs": 1,
    "score_model.width": 8,
    "purifier.mode": '"j_free"',
    "decision_choice.samples": 10,
    "decision_choice.steps": 1,
    "decision_choice.jury_shares": [0.8],
    "decision_choice.amplifications": [3.0],
    "detection.min_accept": 2,
    "decision.opening": 2,
    "evaluation.samples": 10,
    "evaluation.attacks": '"fgsm"',
}


def save(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Images [N, 1, H, W] as CLASS/NUMBER.png."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / NAMES[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.rint(image[0] * 255))).save(path)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tutorial's network, its weights and photos."""
    home = tmp_path_factory.mktemp("own")
    source = next(block for block in blocks(TUTORIAL) if "def build" in block)
    (home / "mynets.py").write_text(source)
    splits = load_data("digits", 0)
    chosen = splits.train.labels < 3
    images, digits = splits.train.images[chosen][:300], splits.train.labels[chosen][:300]
    labels = np.array([2, 0, 1])[digits]  # folders are sorted by name
    rest = splits.test.labels < 3
    save(home / "photos", images, labels)
    save(home / "new", splits.test.images[rest][:120], np.array([2, 0, 1])[splits.test.labels[rest][:120]])
    exec(source, made := {})  # noqa: S102  the tutorial's own
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    torch.manual_seed(0)
    network = made["build"](1, len(NAMES))
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(network((x - MEAN) / STD), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, home / "best.pt")
    return home


@pytest.fixture(autouse=True)
def here(own: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(own)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("mynets", None)  # other tests have a package of that name


def typed(program: str, *more: str) -> list[str]:
    """The words of a command of the tutorial behind `s2ap-defend`, files listed where it says so."""
    (line,) = [
        one.line
        for one in commands(TUTORIAL)
        if one.complete and f"s2ap-defend {program}" in one.line and "dry" not in one.line
    ]
    words = line.split("  #")[0].split()[1:]
    return [*(str(path) for word in words for path in (sorted(Path().glob(word)) if "*" in word else [word])), *more]


def harden(*more: str) -> int:
    tiny = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    return run(typed("harden", "--eps", "0.1", "--workers", "1", *tiny, *more))


@pytest.fixture(scope="module")
def hardened(own: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(own)
        patch.setattr(sys, "path", [*sys.path])
        with (own / "said.txt").open("w") as said, redirect_stdout(said):
            assert harden() == 0
    return own / "model.onnx"


def test_the_given_weights_stay_as_they_are_bit_for_bit(own: Path, hardened: Path) -> None:
    weights, _ = load_checkpoint(hardened.with_name("model.onnx.training") / "plain")
    given = torch.load(own / "best.pt", weights_only=True)["state_dict"]
    assert len(given) == len(weights)
    for name, value in given.items():
        assert torch.equal(weights[f"weight.network.{name.removeprefix('module.')}"], value)


def test_the_end_of_the_run_has_the_table_what_the_answer_buys_and_the_next_commands(hardened: Path) -> None:
    lines = hardened.with_name("said.txt").read_text().splitlines()
    assert any(line.split()[:2] == ["this", "file"] for line in lines)
    frontier = open_model_file(hardened).manifest.decision.frontier
    assert frontier is not None
    assert frontier.reason in lines
    written, following = lines.index(f"wrote {hardened.name}"), lines.index("Next:")
    assert lines[written + 1] == "wrote model.onnx.html"
    following_words = [line.split()[:3] for line in lines[following + 1 :]]
    assert following_words == [["s2ap-defend", name, "model.onnx"] for name in ("classify", "evaluate", "serve")]


def test_the_files_classifier_is_the_one_that_was_given(own: Path, hardened: Path) -> None:
    file = open_model_file(hardened)
    assert file.manifest.classes == NAMES
    stage = cut_stage(file.proto, CLASSIFIER).SerializeToString()
    images = np.random.default_rng(0).random((20, 1, 8, 8), dtype=np.float32)
    (found,) = OnnxRuntimeEngine(stage, device="cpu", threads=1).run({"image": images}, ["log_probabilities"])
    sys.path.insert(0, str(own))
    from mynets import build  # type: ignore[import-not-found]

    network = build(1, 3)
    state = torch.load(own / "best.pt", weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    with torch.no_grad():
        expected = network.eval()((torch.from_numpy(images) - MEAN) / STD).log_softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_answers_with_the_users_names_and_has_a_page_beside_it(hardened: Path) -> None:
    assert hardened.with_name("model.onnx.html").read_text().startswith("<!doctype html>")
    images = np.zeros((2, 1, 8, 8), dtype=np.float32)
    (code,) = [block for block in blocks(TUTORIAL) if "DefendedClassifier" in block]
    exec(code, names := {"images": images})  # noqa: S102  the tutorial's own
    assert names["verdicts"].label.shape == (2,)


def test_every_other_command_of_the_tutorial_works(hardened: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(typed("inspect")) == 0
    assert run(typed("classify")) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert run(typed("evaluate", "--attacks", "fgsm", "--samples", "10", "--workers", "1")) == 0
    assert run(typed("calibrate")) == 0
    said = capsys.readouterr().out
    assert "120 images of new" in said.replace("\n", " ")
    own = ["calibrate", str(hardened), "--data", "photos", "--alpha", ".2", "--calibrate-on", "all", "-o", "own.onnx"]
    assert run(own) == 0
    part = load_recipe(f"{hardened}.training/recipe.json").load_data().calibration
    assert f"{len(part)} images of the calibration part of photos" in capsys.readouterr().out.replace("\n", " ")


def test_the_server_answers_with_the_users_names(hardened: Path) -> None:
    (photo, *_) = sorted(Path("photos/two").iterdir())
    with running(hardened) as server:
        request = urllib.request.Request(
            f"http://{server.address}/classify", photo.read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            (answer,) = json.load(response)["images"]
        with urllib.request.urlopen(f"http://{server.address}/v2/models/model/config", timeout=30) as response:
            told = json.load(response)["parameters"]["classes"]["string_value"]  # what the page reads
    assert answer["class"] == NAMES[answer["label"]]
    assert json.loads(told) == list(NAMES)


def test_evaluate_knows_how_the_file_was_made(hardened: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    attacks = ["--attacks", "fgsm", "--samples", "10", "--workers", "1", "--json", str(figures)]
    assert run(["evaluate", str(hardened), *attacks]) == 0
    assert json.loads(figures.read_text())["samples"] == 10


def test_evaluate_finds_out_by_the_file_alone(
    hardened: Path, tmp_path: Path, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(hardened.read_bytes())
    attacks = ["--attacks", "fgsm", "--samples", "10", "--workers", "1"]
    assert run(["evaluate", str(alone), *attacks]) == 2
    assert "say where they lie with --data" in capsys.readouterr().err
    assert run(["evaluate", str(alone), *attacks, "--data", str(own / "photos")]) == 0
    other = tmp_path / "photos"
    for name in NAMES:
        (other / name).mkdir(parents=True)
        for path in sorted((own / "photos" / name).iterdir())[5:]:
            (other / name / path.name).write_bytes(path.read_bytes())
    capsys.readouterr()
    assert run(["evaluate", str(alone), *attacks, "--data", str(other)]) == 2
    assert "are not those of the hardening" in capsys.readouterr().err


def test_the_same_again_reuses_everything_and_other_settings_replace_nothing_unasked(
    hardened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hardened.read_bytes()
    assert harden("--set", "finetune.lr=0.03") == 2
    error = capsys.readouterr().err
    assert "pruned (other settings)" in error
    assert "--overwrite" in error
    assert hardened.read_bytes() == before


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(own.rglob("*"))
    assert harden("-o", "other.onnx", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "classifier: as given, " in said
    assert "the prefix 'module.' was taken off all names" in said
    assert "decisions under attack: " in said
    assert re.search(r"\d+ parts, 1 process.*, \d+ MB of checkpoints: about \d", " ".join(said.split()))
    assert [path for path in sorted(own.rglob("*")) if "__pycache__" not in str(path)] == [
        path for path in before if "__pycache__" not in str(path)
    ]


def test_a_dry_run_after_an_evaluation_that_was_interrupted_says_how_much_of_it_is_left(
    hardened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attacks = sorted(hardened.with_name("model.onnx.training").glob("evaluation/*.safetensors"))
    kept = {path: path.read_bytes() for path in attacks}
    next(path for path, content in kept.items() if b"descents" in content[:2000]).unlink()  # a row of the ablation
    assert harden("--dry-run") == 0
    some = capsys.readouterr().out
    for path in attacks:
        path.unlink(missing_ok=True)
    assert harden("--dry-run") == 0
    nothing = capsys.readouterr().out
    for path, content in kept.items():
        path.write_bytes(content)
    assert "evaluation: " in nothing
    assert "decisions under attack:" not in nothing
    assert "of the attacks on the file" not in nothing
    assert re.search(r", \d\d?% of the attacks on the file", some)


def test_a_dry_run_on_a_finished_work_folder_says_what_is_stored_and_what_would_be_trained_again(
    hardened: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del hardened
    assert harden("--dry-run") == 0
    said = capsys.readouterr().out
    assert "score-model, " in said
    assert ", 6 attacks on fitting images, 10 attacks on decisions, 100% of the attacks on the file" in said
    assert "of one core" not in said
    assert harden("--dry-run", "--set", "finetune.lr=0.03") == 0
    assert "trained otherwise: pruned (other settings); --overwrite trains them again" in capsys.readouterr().out
