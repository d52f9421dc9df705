"""Every command and block of code of the documents, run where that takes seconds and parsed where it does not."""

import importlib
import json
import re
import shlex
import signal
import tomllib
import urllib.request
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx
import numpy as np
import onnxruntime
import pytest
from tests.docs.documents import DOCUMENTS, ROOT, Command, blocks, commands, inline, is_python, is_toml
from tests.runtime.running_server import running

from s2ap_defend import DefendedClassifier
from s2ap_defend.commands.main import cli, run
from s2ap_defend.errors import DefendError
from s2ap_defend.serve.keys import read_keys
from s2ap_train import recipe as recipes
from s2ap_train.recipe import load_recipe

LOADERS = ("load_recipe", "load_ensemble_recipe", "load_pruning_recipe")


def each(documents: list[Path] = DOCUMENTS) -> Any:
    return pytest.mark.parametrize("document", documents, ids=lambda path: path.name)


def attempt(command: Command) -> None:
    """Run or parse one command.

    Raises:
        AssertionError, click.UsageError, DefendError: If it does not work.
    """
    for argv in command.argvs():
        program, *rest = argv
        match program.removeprefix(".venv/bin/"), rest:
            case "s2ap-defend", ["serve", *options]:
                parse(cli.get_command(click.Context(cli), "serve"), options, command)
            case "s2ap-defend", ["export", *options] if "--tensorrt" in options:  # builds on a GPU
                parse(cli.get_command(click.Context(cli), "export"), options, command)
            case "s2ap-defend", _ if command.complete:
                words = [str(path) for word in rest for path in (sorted(Path().glob(word)) if "*" in word else [word])]
                assert run(words) == 0, command.line
            case "s2ap-defend", [name, *options]:
                found = cli.get_command(click.Context(cli), name)
                assert found is not None, command.line
                parse(found, options, command)
            case "make", targets:
                known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
                assert set(targets) <= set(known), command.line
            case "python", ["-m", module, *options]:
                found = importlib.import_module(module)
                if hasattr(found, "__path__"):
                    found = importlib.import_module(f"{module}.__main__")
                parse_program(found, options, command)
            case "python", [file, *options]:
                assert (ROOT / file).is_file(), command.line
                parse_program(importlib.import_module(Path(file).stem), options, command)
            case "pip", ["install", what]:
                installs(what)
            case _:
                raise AssertionError(f"no test knows how to try: {command.line}")


def parse(command: click.Command, options: list[str], written: Command) -> click.Context | None:
    """The parsed options; None where a mention in a sentence leaves out what is required."""
    try:
        return command.make_context(str(command.name), list(options))
    except click.MissingParameter:
        if written.complete:
            raise
        return None


def parse_program(module: ModuleType, options: list[str], written: Command) -> None:
    """Parse the options of a module that is a program, and load its recipe with the changes that they ask for."""
    program = next((value for value in vars(module).values() if isinstance(value, click.Command)), None)
    if program is None:
        assert not any(option.startswith("-") for option in options), written.line
        return
    context = parse(program, options, written)
    if context is None or "recipe" not in context.params:
        return
    loader = next((vars(module)[name] for name in LOADERS if name in vars(module)), recipes.load_pruning_recipe)
    data = context.params.get("data", ()) if written.complete else ()
    where = importlib.import_module("report").data_overrides(data)
    loader(context.params["recipe"], [*where, *context.params.get("overrides", ())])


def installs(what: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.fullmatch(r"(?:\.|/path/to/s2ap-defend)(?:\[([\w,]+)\])?", what)
    assert found, f"pip install {what}: the package is on no index; name a checkout"
    assert set((found[1] or "train").split(",")) <= project["optional-dependencies"].keys(), what


@each()
@pytest.mark.usefixtures("folder", "without_training", "benchmarks")
def test_the_commands_of_a_document_work_one_after_another(document: Path) -> None:
    for command in commands(document.read_text()):
        try:
            attempt(command)
        except (click.UsageError, DefendError) as error:
            message = error.format_message() if isinstance(error, click.UsageError) else error
            raise AssertionError(f"{command.line}: {message}") from error


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("    s2ap-defend plan --q0 .05 --q2 .6\n", "No such option '--q2'"),
        ("    s2ap-defend inspect missing.onnx\n", "missing.onnx does not exist"),
        ("    s2ap-defend prune digits -o out --method hydro\n", "'hydro' is not one of"),
        ("    s2ap-defend prune digits -o out --set pruning.s2ap.radios=1\n", "s2ap.radios is not known"),
        ("    s2ap-defend evaluate model.onnx --recipe digits [--budget quick|larger]\n", "'larger' is not one of"),
        ("    python benchmarks/detection.py digits --set data.test_limits=3\n", "data.test_limits is not known"),
        ("    python benchmarks/nothing.py\n", "benchmarks/nothing.py"),
        ("    make tests\n", "make tests"),
        ("As `s2ap-defend harden digits --quick` does.\n", "No such option"),
        ("As `pip install 's2ap-defend[train]'` does.\n", "the package is on no index"),
        ("As `pip install '.[trane]'` does.\n", "trane"),
    ],
)
@pytest.mark.usefixtures("folder", "without_training", "benchmarks")
def test_a_command_that_does_not_work_is_found(
    text: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "planted.md"
    document.write_text(text)
    with pytest.raises(AssertionError) as caught:
        test_the_commands_of_a_document_work_one_after_another(document)
    assert found in f"{caught.value}{capsys.readouterr().err}"


def test_the_files_of_the_server_are_such_as_it_reads(tmp_path: Path) -> None:
    settings, keys = filter(is_toml, blocks((ROOT / "docs" / "serving.md").read_text()))
    for name, block in (("serve.toml", settings), ("keys.toml", keys)):
        (tmp_path / name).write_text(block)
    assert read_keys(tmp_path / "keys.toml")
    assert run(["serve", "--config", str(tmp_path / "serve.toml"), "--print-config"]) == 0


@each([path for path in DOCUMENTS if path.name != "serving.md" and any(map(is_toml, blocks(path.read_text())))])
def test_tables_of_recipes_are_what_a_recipe_may_hold(document: Path) -> None:
    for block in filter(is_toml, blocks(document.read_text())):
        table, changes = "", []
        for line in block.splitlines():
            if line.startswith("["):
                table = line[1 : line.index("]")] + "."
            elif line:
                changes.append(table + line.replace(" = ", "=", 1))
        load_recipe("digits", changes)


@each([path for path in DOCUMENTS if path.name != "serving.md" and any(map(is_python, blocks(path.read_text())))])
def test_python_of_a_document_runs(document: Path, folder: Path) -> None:
    images = np.load(folder / "images.npy")
    names = {"images": images, "classifier": DefendedClassifier.load("model.onnx", device="cpu")}
    for block in filter(is_python, blocks(document.read_text())):
        exec(block, names)  # noqa: S102


def test_the_file_answers_without_this_package_as_the_readme_says(folder: Path) -> None:
    (expression,) = (code for code in inline((ROOT / "README.md").read_text()) if code.startswith("onnxruntime."))
    names = {"onnxruntime": onnxruntime, "images": np.load(folder / "images.npy")}
    assert len(eval(expression, names)) == 11  # noqa: S307


def test_the_server_of_the_readme_answers(folder: Path) -> None:
    (command,) = (one for one in commands((ROOT / "README.md").read_text()) if " serve " in one.line)
    _, _, model, *options = command.argvs()[0]
    with running(folder / model, *options) as server:
        assert "s2ap_defense_members_used" in ask(f"http://{server.address}/metrics").decode()
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0


def test_the_server_answers_what_serving_says(folder: Path) -> None:
    document = (ROOT / "docs/serving.md").read_text().replace("0.5, ...", ", ".join(["0.5"] * 63))
    with running(folder / "model.onnx") as server:
        for block in blocks(document.replace("127.0.0.1:8000", server.address)):
            if is_python(block):
                exec(block, {})  # noqa: S102
            elif block.startswith("curl"):
                curl, _, answer = block.partition("\n{")
                given = json.loads(by_curl(curl))
                assert not answer or shape_of(given) == shape_of(json.loads("{" + answer))


def shape_of(answer: Any) -> Any:
    """An answer without its values."""
    if isinstance(answer, dict):
        return {key: shape_of(value) for key, value in answer.items()}
    return [shape_of(item) for item in answer] if isinstance(answer, list) else type(answer)


def by_curl(line: str) -> bytes:
    """What curl is answered to a command of `-F`, `-d` or `--data-binary` and an address."""
    words = shlex.split(line)[1:]
    address = next(word for word in words if word.startswith("http"))
    fields = [words[i + 1].split("=@") for i, word in enumerate(words) if word == "-F"]
    if fields:
        return httpx.post(address, files=[(name, (path, Path(path).read_bytes())) for name, path in fields]).content
    option = next(i for i, word in enumerate(words) if word in {"-d", "--data-binary"})
    data = words[option + 1]
    return ask(address, Path(data[1:]).read_bytes() if data.startswith("@") else data.encode())


def ask(address: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(address, data, timeout=30) as answer:  # noqa: S310
        return answer.read()
