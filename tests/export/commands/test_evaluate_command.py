"""What `evaluate` refuses before it trains or attacks anything, and what it writes."""

import json
import os
from pathlib import Path

import pytest
from tests.export.defended_files import DECISION, PURIFICATION, TABLES, write_untrained

from s2ap_defend.commands.main import run


def evaluate(model: Path, *more: object, recipe: object = "digits") -> int:
    """Run the command as cheaply as it can be run."""
    cheap = ["--recipe", recipe, "--ablation", "off", "--workers", "1"]
    return run([str(argument) for argument in ("evaluate", model, *cheap, *more)])


def refusal(capsys: pytest.CaptureFixture[str], model: Path, *more: object, recipe: object = "digits") -> str:
    """The one line of a refusal; nothing was attacked and no file was changed or added."""
    before = {path: path.read_bytes() for path in model.parent.iterdir() if path.is_file()}
    assert evaluate(model, *more, recipe=recipe) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert {path: path.read_bytes() for path in model.parent.iterdir()} == before
    return captured.err


@pytest.mark.parametrize("option", ["--json", "--report", "--badge", "--write-manifest"])
def test_no_output_replaces_the_model(model: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "soft.onnx").symlink_to(model)
    os.link(model, model.parent / "hard.onnx")
    for output in (model, model.parent / "soft.onnx", model.parent / "hard.onnx"):
        assert f"{option} {output} would overwrite {model}" in refusal(capsys, model, option, output)
    assert "would overwrite" in refusal(capsys, model, option, os.path.relpath(model))


def test_no_output_replaces_the_weights_beside_the_model_or_the_recipe(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, recipe = model.with_name("model.onnx.data"), model.with_name("own.toml")
    weights.write_bytes(b"weights")
    recipe.write_text("name = 'own'")
    assert f"would overwrite {weights}" in refusal(capsys, model, "--badge", weights)
    assert f"would overwrite {recipe}" in refusal(capsys, model, "--json", recipe, recipe=recipe)


def test_two_outputs_are_two_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, same = tmp_path / "a.json", tmp_path / "no" / ".." / "a.json"
    assert f"--json and --badge both write {same}" in refusal(capsys, model, "--json", target, "--badge", same)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", ","], "no attack is named; name a preset (quick, standard, full)"),
        (["--attacks", ""], "no attack is named"),
        (["--attacks", "quick,fgsm"], "a preset stands alone; name 'quick' without other attacks"),
        (["--attacks", "fgsn"], "attack 'fgsn' is not known; did you mean fgsm? there are"),
        (["--server", "http://127.0.0.1:9", "--attacks", "fgsm"], "none of fgsm attacks a server; add square-http"),
        (["--attacks", "fgsm", "--write-manifest", "x.onnx"], "--write-manifest needs the sanity checks of a preset"),
        (["--set", "seed=3"], "--seed sets the seed of the attacks"),
        (["--time-limit", "nan"], "--time-limit is nan; give minutes"),
        (["--eps", "1.5"], "eps is 1.5; it is an l_inf budget in [0, 1] pixels"),
        (["--eps", "nan"], "eps is nan"),
        (["--eps", "0"], "eps is 0, which leaves quick nothing to attack with"),
        (["--l2", "-1"], "l2 is -1.0"),
        (["--pixels", "65"], "from 0 to the 64 there are"),
        (["--samples", "100000"], "--samples 100000 is more than the"),
        (["--first", "100000"], "--first 100000 leaves 0 of the"),
    ],
)
def test_what_cannot_be_attacked_is_said_before_networks_are_trained(
    model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # with 'all' the attacker's own networks would be trained first
    assert message in refusal(capsys, model, *arguments, "--ablation", "all")


def test_images_of_another_shape_or_other_classes_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    larger = ["--set", 'data={source="digits",image_size=16}']
    error = refusal(capsys, model, *larger)
    assert "recipe digits has images of shape [1, 16, 16], model.onnx takes [1, 8, 8]; name the recipe" in error
    write_untrained(model, TABLES, DECISION, PURIFICATION, classes=9)
    assert "recipe digits has a number of classes of 10, model.onnx takes 9" in refusal(capsys, model)


def test_what_was_found_is_written_even_where_a_copy_of_the_model_is_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, badge, copy = (tmp_path / name for name in ("figures.json", "badge.json", "copy.onnx"))
    # nothing but the search has time, so there is no sanity check; nobody answers at the address
    few = ["--attacks", "quick", "--samples", 2, "--time-limit", 1e-6, "--server", "http://127.0.0.1:9"]
    assert evaluate(model, *few, "--json", figures, "--badge", badge, "--write-manifest", copy) == 2
    captured = capsys.readouterr()
    assert "do not go into a file" in captured.err
    assert f"wrote {badge}" in captured.out
    assert not copy.exists()
    assert {"square-http", "hopskipjump-http", "fgsm"} <= set(json.loads(figures.read_bytes())["not_run"])


def test_the_clean_images_alone_are_no_mistake(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "badge.json"
    assert evaluate(model, "--attacks", "clean", "--samples", 10, "--badge", target) == 0
    document = json.loads(target.read_bytes())
    assert document["verdict"] == "incomplete"
    assert [row["attack"] for row in document["measured"]] == ["clean"]


def test_the_robust_classifier_alone_needs_no_checkpoints(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    few = ["--recipe", "digits", "--attacks", "pgd", "--samples", 4, "--workers", 1, "--ablation", "kept"]
    few += ["--gradients", "bfloat16"]
    assert run([str(argument) for argument in ("evaluate", model, *few, "--json", target)]) == 0
    document = json.loads(target.read_bytes())
    assert document["configuration"]["budget"]["gradients"] == "bfloat16"
    assert document["pruned"]["worst_case"].keys() == document["pruned_confidence"]["worst_case"].keys()
    assert {"label_accuracy", "robust_accuracy"} <= document["pruned"]["worst_case"].keys()
    assert set(document["not_run"]) == {"row 'adversarially trained'", "row 'wider, same compute'"}
    assert "--checkpoints" in document["not_run"]["row 'adversarially trained'"]
    assert len(document["must_hold"]) == 5
