"""Tables of the documents against the code that they describe."""

import importlib
import json
import re
import tomllib
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from tests.docs.documents import DOCUMENTS, ROOT, blocks, codes, is_toml, rows, text_of
from tests.train.made_evaluation import made_evaluation
from torch._subclasses.fake_tensor import FakeTensorMode

from s2ap_defend.commands.main import run
from s2ap_defend.errors import RecipeError
from s2ap_defend.manifest import Manifest
from s2ap_train.calibration.settings import Detection
from s2ap_train.ensemble import FAMILIES
from s2ap_train.models import ARCHITECTURES
from s2ap_train.pruning.methods import METHODS
from s2ap_train.purifier import ScoreTraining, UNet
from s2ap_train.purifier.blocks import Blocks
from s2ap_train.purifier.sizes import Size, pass_flops
from s2ap_train.recipe import load_pruning_recipe, packaged_recipes
from s2ap_train.redteam.attacks.catalogue import ATTACKS
from s2ap_train.redteam.report.console import to_json


def keys_of(document: object, prefix: str = "") -> set[str]:
    """Dotted keys of a JSON document; of a list, those of its entries."""
    if isinstance(document, list):
        return {key for entry in document for key in keys_of(entry, prefix)}
    if not isinstance(document, dict):
        return set()
    own = {prefix + key for key in document}
    return own.union(*(keys_of(value, f"{prefix}{key}.") for key, value in document.items()))


def test_evaluation_names_every_attack_with_its_norm() -> None:
    named = {}
    for first, norm, *_ in rows(text_of("evaluation.md", "| attack | norm", "\n## ")):
        names = [f"agreement{name}" if name.startswith("-") else name for name in codes(first)]
        norms = norm.split(", ")
        named |= dict(zip(names, norms if len(norms) == len(names) else norms * len(names), strict=True))
    assert named == {
        name: {"linf": "l_inf", None: "none"}.get(attack.norm, attack.norm) for name, attack in ATTACKS.items()
    }


def test_evaluation_names_keys_that_the_json_has() -> None:
    found = keys_of(json.loads(json.dumps(to_json(made_evaluation()))))
    found |= {re.sub(r"^(bare\.)?attacks\.[^.]+", "attacks.NAME", key) for key in found}
    text = text_of("evaluation.md", "Keys are an interface:", r"It is\s+strict")
    named = set()
    for code in codes(text):
        begin, _, names = re.sub(r"\s", "", code).rstrip("}").partition("{")
        named |= {begin.replace("[]", "") + name for name in names.split(",")} if names else {begin}
    assert len(named) > 30
    assert {name for name in named if name not in found and f"attacks.NAME.{name}" not in found} == set()


def test_detection_names_the_keys_of_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--q0", ".05", "--q1", ".6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    table = rows(text_of("detection.md", "| key | |", "\n\n"))
    named = [code for first, *_ in table[2:-1] for code in codes(first)]
    assert set(named) <= found.keys()
    design = {"q0", "q1", "alpha", "beta", "n_max", "truncation", "min_accept", "boundary", "note"}
    assert found.keys() - design <= set(named)
    assert keys_of(found["curve"]) | keys_of(found["wald"]) == {
        code for first, second in table for code in codes(second) if first in {"`curve`", "`wald`"}
    } - {"q0", "q1"}


def test_detection_shows_what_plan_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--q0", ".05", "--q1", ".6", "--alpha", ".05", "--beta", ".05", "--n-max", "24"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    (shown,) = (block for block in blocks(text_of("detection.md")) if block.startswith("error rates"))
    assert [line for line in shown.splitlines() if line and line.split() not in printed] == []


def test_calibration_names_the_keys_of_calibrate(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", "digits", "--calibrate-on", "all", "--limit", "60", "-o", str(tmp_path / "new.onnx"), "--json"]
    assert run(["calibrate", str(model), *options]) == 0
    named = set()
    for code in codes(text_of("calibration.md", "JSON\nkeys:", r"\.\n\n")):
        begin, _, names = re.sub(r"\s", "", code).rstrip("}").partition("{")
        named |= {begin + name for name in names.split(",")} | {begin.rstrip(".")} if names else {begin}
    assert named == keys_of(json.loads(capsys.readouterr().out))


def test_calibration_shows_the_defaults() -> None:
    (block,) = (block for block in blocks(text_of("calibration.md")) if is_toml(block))
    shown = tomllib.loads(block)["detection"]
    assert shown.pop("n_max") == 12  # None, which is all
    assert shown.pop("truncation") == Detection().final_rule
    assert shown == {key: getattr(Detection(), key) for key in shown}
    assert {field.name for field in fields(Detection)} - shown.keys() == {"n_max", "truncation", "wave"}


def test_score_models_gives_the_sizes() -> None:
    for images, *cells in rows(text_of("score-models.md", "| images | fold", "\n\n"))[2:]:
        channels, height, width = map(int, images.split("x"))
        shape = (channels, height, width)
        sizes: tuple[Size, Size] = ("standard", "fast")
        for size, (shown, parameters, work) in zip(sizes, (cells[1:4], cells[4:]), strict=True):
            width, multipliers, fold = ScoreTraining(size=size).architecture(shape)
            with FakeTensorMode():  # its sizes, without its weights
                net = UNet(channels, width, multipliers, fold)
                millions = pass_flops(net, shape) / 1e6
            assert (cells[0], shown) == (f"{fold}", f"{width} {multipliers}")
            assert parameters == f"{sum(each.numel() for each in net.parameters()):,}"
            assert work == f"{millions:,.{0 if millions > 10 else 1}f} M"


def test_score_models_gives_the_work_of_cheaper_networks() -> None:
    for images, *cells in rows(text_of("score-models.md", "| images, MFLOPs a pass", "\n\n"))[2:]:
        channels, height, width = map(int, images.split("x"))
        for shown, (size, kind) in zip(cells, product(get_args(Size), get_args(Blocks)), strict=True):
            with FakeTensorMode():
                sides = ScoreTraining(size=size).architecture((channels, height, width))
                net = UNet(channels, *sides, blocks=kind)
                millions = pass_flops(net, (channels, height, width)) / 1e6
            assert shown == f"{millions:,.{len(shown.partition('.')[2])}f}", (images, size, kind)


def test_model_file_names_every_key_of_a_manifest() -> None:
    text = text_of("model-file.md", "## Manifest", "\n## ")

    def names(kind: type[BaseModel]) -> set[str]:
        inner = {one for field in kind.model_fields.values() for one in models_in(field.annotation)}
        return set(kind.model_fields).union(*map(names, inner))

    def models_in(annotation: object) -> set[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return {annotation}
        return {one for inner in get_args(annotation) for one in models_in(inner)}

    assert names(Manifest) - set(codes(text)) == set()


@pytest.mark.parametrize(
    ("document", "names"),
    [
        ("s2ap.md", [*METHODS, "s2ap", *(name for name in ARCHITECTURES if name != "user"), *packaged_recipes()]),
        ("detection.md", [*FAMILIES]),
    ],
)
def test_everything_that_may_be_chosen_is_named(document: str, names: list[str]) -> None:
    assert set(names) - set(codes(text_of(document))) == set()


@pytest.mark.parametrize("structure", ["unstructured", "channel", "2:4"])
def test_s2ap_says_which_method_has_which_structure(structure: str) -> None:
    for method, _, _, structures, _ in rows(text_of("s2ap.md", "| `--method` | starts from", "\n\n"))[2:]:
        if method == "`s2ap`":
            continue
        changes = [f"pruning.method={method.strip('`')}", f'pruning.structure="{structure}"', "pruning.sparsity=0.5"]
        try:
            load_pruning_recipe("digits", changes)
        except RecipeError:
            assert structure not in structures.replace("all", structure), method
        else:
            assert structure in structures.replace("all", structure), method


def test_an_attacker_is_it() -> None:
    for document in DOCUMENTS:
        assert re.findall(r"\b(?:he|him|his|she|her)\b|attacker\s+who\b", document.read_text()) == [], document.name


@pytest.mark.parametrize(
    ("document", "begin", "end", "program", "results"),
    [
        ("detection-figures.md", "## Digits", r"\Z", "detection_tables", "detection-digits.json"),
        ("detection-figures-cifar10.md", "## Attacks", r"\Z", "detection_tables", "detection-cifar10-small.json"),
        ("purifier-figures.md", "## Digits", "\n### The sweep", "purification_tables", "purification-digits.json"),
    ],
)
@pytest.mark.usefixtures("benchmarks")
def test_figures_are_those_of_the_stored_results(
    document: str, begin: str, end: str, program: str, results: str, capsys: pytest.CaptureFixture[str]
) -> None:
    importlib.import_module(program).print_tables(json.loads((ROOT / "benchmarks/results" / results).read_text()))
    printed = rows(capsys.readouterr().out)
    shown = rows(text_of(document, begin, end))
    assert len(shown) > 50
    assert [row for row in shown if row not in printed and set("".join(row)) != {"-"}] == []
