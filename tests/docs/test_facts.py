"""Names, sizes, limits and defaults of the documents against the code."""

import ast
import configparser
import inspect
import re
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import click
import onnx
import pytest
from onnx import helper
from tests.docs.documents import ROOT, codes, rows, text_of

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import cli
from s2ap_defend.images import MAX_PIXELS, SUFFIXES
from s2ap_defend.images.profiles import LARGEST_PROFILE, PLAIN_LEVELS
from s2ap_defend.manifest import FORMAT_VERSION
from s2ap_defend.serve import ServerConfig, create_app, errors
from s2ap_defend.serve.body import SLOW_START_S
from s2ap_defend.serve.connection import HEAD_BYTES
from s2ap_defend.serve.json_numbers import LARGE_BYTES
from s2ap_export.graph.builder import OPSET
from s2ap_train.commands.prune.metrics import run_facts, run_measures
from s2ap_train.data import digits
from s2ap_train.data.containers import LARGEST_FILE
from s2ap_train.data.settings import SourceName
from s2ap_train.pruning.s2ap import S2AP
from s2ap_train.redteam.plan import SAMPLES

MIB = 1024 * 1024


def import_rules() -> configparser.ConfigParser:
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    return rules


@pytest.mark.parametrize("package", ["s2ap_train", "s2ap_export"])
def test_architecture_has_every_room_in_the_order_of_the_layers(package: str) -> None:
    table = [codes(first) for first, _ in rows(text_of("architecture.md", f"| room of `{package}`", "\n\n"))[2:]]
    name = "importlinter:contract:" + package.replace("s2ap_", "") + "-layers"
    assert table == [line.split(" | ") for line in import_rules()[name]["layers"].split("\n") if line]
    folder = ROOT / package.removeprefix("s2ap_") / package
    assert sorted(room for line in table for room in line) == sorted(
        path.parent.name for path in folder.glob("*/__init__.py")
    )


def test_architecture_says_which_packages_have_all_modules_in_layers() -> None:
    containers = [contract.get("containers", "") for contract in import_rules().values()]
    exhaustive = {container.split(".")[1] for container in containers if "." in container}
    assert set(codes(text_of("architecture.md", "A new room must be given", r"\n\n"))) == exhaustive


def defined(name: str, files: list[Path]) -> bool:
    sources = [source for file in files for source in (file.glob("*.py") if file.is_dir() else [file])]
    return any(re.search(rf"^(?:class )?{name}\b.*[=:]", source.read_text(), re.MULTILINE) for source in sources)


def misplaced(text: str) -> list[str]:
    """What cells of the table of CONTRIBUTING name that is not there, or not in the cell's files."""
    roots, wrong = (ROOT, ROOT / "train/s2ap_train", ROOT / "runtime"), []
    for row in rows(text)[2:]:
        for cell in row:
            named = codes(cell) + re.findall(r"docs/[\w-]+\.md|README\.md|pyproject\.toml", cell)
            found = {code: root / code for code in named for root in roots if (root / code).exists()}
            rest = [code for code in named if code not in found and not re.match("--|make ", code)]
            wrong += [code for code in rest if not code.isidentifier() or not defined(code, list(found.values()))]
    return wrong


def test_contributing_names_files_and_what_is_in_them() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert misplaced(text) == []
    planted = text.replace("`METHODS`", "`ATTACKS`").replace("families.py", "family.py")
    assert misplaced(planted) == ["Family", "ATTACKS"]


def test_evaluation_gives_the_images_of_every_preset() -> None:
    table = rows(text_of("evaluation.md", "| preset |", "\n\n"))[2:]
    assert {name.strip("`"): images for name, images, *_ in table} == {
        name: "all" if images is None else str(images) for name, images in SAMPLES.items()
    }


def test_model_file_gives_versions_inputs_and_outputs(model: Path) -> None:
    proto = onnx.load(model)
    assert {entry.version for entry in proto.opset_import} == {OPSET}
    text = text_of("model-file.md")
    assert f"# The defended model file, version {FORMAT_VERSION}\n" in text
    assert f"| `format_version` | {FORMAT_VERSION}; another version is refused |" in text
    assert f"opset {OPSET} or later" in text
    for heading, values in {"## Input\n": proto.graph.input, "## Outputs": proto.graph.output}.items():
        types = [value.type.tensor_type for value in values]
        assert [
            (name, kind, shape.count(",", 0, shape.index("]")) + 1)
            for name, kind, shape, _ in rows(text_of("model-file.md", heading, "\n## "))[2:]
        ] == [
            (f"`{value.name}`", helper.tensor_dtype_to_np_dtype(kind.elem_type).name, len(kind.shape.dim))
            for value, kind in zip(values, types, strict=True)
        ]


def test_serving_has_every_route(model: Path) -> None:
    shown = set()
    for cell, _ in rows(text_of("serving.md", "| method and path", "\n\n"))[2:]:
        for method, path in (code.split() for code in codes(cell)):
            route = path.replace("MODEL", "{model}")
            for version in ("", "/versions/{version}") if "[" in route else ("",):
                shown.add((method, route.replace("[/versions/1]", version)))
    app = create_app(DefendedClassifier.load(model, device="cpu"), ServerConfig(model=model))
    served = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    assert shown == served | {("GET", path) for path in ("/", "/docs", "/openapi.json")}  # no description lists them


def test_serving_has_every_status() -> None:
    shown = [status for cell, _ in rows(text_of("serving.md", "| status", "\n\n"))[2:] for status in cell.split(", ")]
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.RequestError)]
    sources = "".join(path.read_text() for path in (ROOT / "runtime/s2ap_defend/serve").glob("*.py"))
    given = {str(kind.status) for kind in kinds} | set(re.findall(r"(?:status=|_refuse\()(\d+)", sources))
    assert set(shown) == given - {"422"} | {"405"}  # no path has a parameter that could be invalid; the router's own


def test_serving_gives_the_defaults() -> None:
    config, text = ServerConfig(model=Path("model.onnx")), text_of("serving.md")
    assert f"serves one defended model file over HTTP at `http://{config.host}:{config.port}`" in text
    assert f"is over {config.max_body_bytes // MIB} MiB, or" in text
    assert f"did not arrive within {config.body_timeout_s:g} s or, after {SLOW_START_S:g} s, brought less than" in text
    assert (
        f"less than {config.body_rate_bytes_s // 1024} KiB a second; the head took over {config.head_timeout_s:g} s"
        in text
    )
    assert f"over {LARGE_BYTES // 1024} KiB of JSON" in text
    assert f"has over {HEAD_BYTES // 1024} KiB" in text


def test_data_gives_sources_sizes_and_limits() -> None:
    text = text_of("data.md")
    table = rows(text_of("data.md", "| source | what `root` is", "\n\n"))[2:]
    assert [first.strip("`") for first, *_ in table] == list(get_args(SourceName))
    assert f"(digits: {', '.join(map(str, digits.HELD_OUT_SIZES.values()))}) |" in text
    assert f"beyond {MAX_PIXELS // MIB} Mi pixels" in text
    assert f"to more than {LARGEST_FILE // MIB} MiB" in text
    splits = digits.load_digits()
    sizes = {"train": len(splits.train), "validate": len(splits.validation), "test": len(splits.test)}
    whole = sum(map(len, (splits.train, splits.validation, splits.fit, splits.calibration, splits.test)))
    assert f"`digits` | none: scikit-learn's {whole:,} grey 8x8 digits" in text
    shown = " ".join(text_of("s2ap.md", "- **Data and training**", "with 20 epochs").split())
    assert f"{whole:,} 8x8 digits; " + ", ".join(f"{size} to {part}" for part, size in sizes.items()) in shown


def test_images_gives_the_endings_and_limits() -> None:
    text = text_of("images.md")
    endings = text_of("images.md", "Files with the endings", r"are read")
    assert tuple(codes(endings)) == SUFFIXES
    assert f"beyond {MAX_PIXELS // MIB} Mi pixels" in text
    assert f"damaged or over {LARGEST_PROFILE // MIB} MiB" in text
    assert f"by more than {PLAIN_LEVELS} of 255 levels" in text


def test_s2ap_gives_the_defaults() -> None:
    shown = tomllib.loads("\n".join(codes(text_of("s2ap.md", "Defaults of", "\n\n"))[1:]))
    assert shown == {**asdict(S2AP()), "flip_band": list(S2AP().flip_band)}


def test_s2ap_has_every_option_of_prune() -> None:
    options = {
        code
        for first, _ in rows(text_of("s2ap.md", "| option |", "\n\n"))[2:]
        for code in re.findall("--[a-z-]+", first)
    }
    command = cli.get_command(click.Context(cli), "prune").make_context("prune", [], resilient_parsing=True).command
    known = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert options == known - {"--output"}


def test_s2ap_has_every_key_of_the_metrics() -> None:
    made = ast.parse(inspect.getsource(run_facts) + inspect.getsource(run_measures))
    returned = [node.value for node in ast.walk(made) if isinstance(node, ast.Return)]
    keys = {key.value for table in returned for key in table.keys if key}
    surface = {"sharpness", "hessian_eigenvalue", "hessian_eigenvalue_relative"}
    table = rows(text_of("s2ap.md", "| `name`, `data`", "\n\n"))
    assert sorted(code for first, _ in table for code in codes(first)) == sorted(keys | surface)


def test_the_readme_and_make_ask_for_the_python_that_is_required() -> None:
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert f"\nPython {required} or newer" in (ROOT / "README.md").read_text()
    assert f"needs Python {required} or newer" in (ROOT / "Makefile").read_text()
    assert f"({required.replace('.', ', ')})" in (ROOT / "Makefile").read_text()
