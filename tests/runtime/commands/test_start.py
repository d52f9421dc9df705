"""What the command line imports before it works, and what it says where an extra is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import s2ap_defend
from s2ap_defend.commands.deferred import COMMANDS, DeferredCommand

LIGHT = {"click", "s2ap_defend"}
TABLES = LIGHT | {"attr", "numpy", "orjson", "rich"}  # older rich looks for attr
MANIFEST = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
GRAPH = {"google", "ml_dtypes", "onnx"}

RUN = """
import sys
before = set(sys.modules)
from s2ap_defend.commands.main import run
code = run(sys.argv[1:])
print("\\n".join(["imported:", *sorted(set(sys.modules) - before)]))
sys.exit(code)
"""

HELP = """
import sys
from s2ap_defend.commands.main import run
for name in sys.argv[1:]:
    before = set(sys.modules)
    assert run([name, "--help"]) == 0
    print(f"imported by {name}:", *sorted(set(sys.modules) - before))
"""

STALE = """
import importlib.metadata, sys
from importlib.metadata import EntryPoint
from s2ap_defend.commands.main import main
place = sys.argv.pop(1)
importlib.metadata.entry_points = lambda **wanted: [EntryPoint(wanted["name"], place, wanted["group"])]
main()
"""

REFUSE_EXTRAS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "sklearn", "foolbox", "safetensors", "scipy", "ray"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""

WITHOUT_EXTRAS = f"""{REFUSE_EXTRAS}
from s2ap_defend.commands.main import run
sys.exit(run(sys.argv[1:]))
"""


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )


def imported(*arguments: str) -> set[str]:
    """Modules that are imported by a command that succeeds."""
    done = python(RUN, *arguments)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.partition("imported:\n")[2].split())


def packages(modules: set[str]) -> set[str]:
    """Packages of installed modules, private and generated ones of the standard library left out."""
    return {name.partition(".")[0] for name in modules if not name.startswith("_")} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_and_version_import_click_and_three_modules_of_ours(option: str) -> None:
    modules = imported(option)
    assert packages(modules) == LIGHT
    assert {name for name in modules if name.startswith("s2ap_defend.")} == {
        "s2ap_defend.commands",
        "s2ap_defend.commands.deferred",
        "s2ap_defend.commands.main",
        "s2ap_defend.errors",
    }


@pytest.mark.parametrize("arguments", [["plan", "--help"], ["plan", "--q0", ".05", "--q1", ".6"]])
def test_plan_imports_numpy_and_tables_alone(arguments: list[str]) -> None:
    assert packages(imported(*arguments)) <= TABLES


def test_inspect_reads_a_file_without_an_engine(tiny_model_path: Path) -> None:
    assert packages(imported("inspect", str(tiny_model_path))) <= TABLES | MANIFEST | GRAPH
    assert "onnxruntime" not in imported("inspect", str(tiny_model_path), "--json")


def test_the_help_of_no_command_imports_torch_or_an_engine_or_a_server() -> None:
    done = python(HELP, *(str(command.name) for command in COMMANDS))
    imports = dict(line.split(":") for line in done.stdout.splitlines() if line.startswith("imported by "))
    assert list(imports) == [f"imported by {command.name}" for command in COMMANDS], done.stderr
    heavy = {"torch", "sklearn", "foolbox", "matplotlib", "onnxruntime", "fastapi", "uvicorn", "PIL"}
    assert [by for by, names in imports.items() if packages(set(names.split())) & heavy] == []


def test_importing_the_package_imports_its_errors_alone_and_shows_all_names() -> None:
    done = python(
        "import sys; before = set(sys.modules); import s2ap_defend\n"
        "print(*sorted(name for name in set(sys.modules) - before if 's2ap' in name or 'numpy' in name))\n"
        "print(set(s2ap_defend.__all__) <= set(dir(s2ap_defend)), s2ap_defend.Verdicts.FIELDS[0])"
    )
    assert done.stdout.splitlines() == ["s2ap_defend s2ap_defend.errors", "True label"], done.stderr


def test_a_name_that_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 's2ap_defend' has no attribute 'DefendedClasifier'"):
        s2ap_defend.DefendedClasifier  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_line_in_the_list_is_the_first_sentence_of_the_commands_own_help(command) -> None:
    own = command.load()
    assert own.name == command.name
    assert own.get_short_help_str(limit=1000) == command.help


def test_a_command_that_the_installation_does_not_know_is_refused() -> None:
    with pytest.raises(click.ClickException, match="soften is no entry point of this installation; install s2ap-de"):
        DeferredCommand("soften", "Make a model less robust.", extra="train").load()


@pytest.mark.parametrize(
    "place", ["s2ap_train.no_such.cli:prune", "s2ap_export:no_such", "s2ap_train.commands.prune.cli:prune.no_such"]
)
def test_an_entry_point_of_another_version_is_one_line_and_silent_where_a_shell_completes(place: str) -> None:
    done = python(STALE, place, "prune", "digits", "-o", "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: prune is not where this installation says, in {place} (")
    assert done.stderr.endswith("; it is of another version: install s2ap-defend again\n")
    assert done.stderr.count("\n") == 1
    words = {"_S2AP_DEFEND_COMPLETE": "bash_complete", "COMP_WORDS": "s2ap-defend prune di", "COMP_CWORD": "2"}
    done = python(STALE, place, **words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


def test_an_entry_point_that_misses_a_library_of_an_extra_still_says_which_to_install() -> None:
    done = python(REFUSE_EXTRAS + STALE, "torch:nn", "prune")
    assert done.stderr == "Error: prune needs torch, of the extra [train]; pip install '.[train]' in a checkout\n"


def test_the_demonstration_without_extras_says_which_to_install() -> None:
    module = "s2ap_export.commands.demo"
    done = python(f"{REFUSE_EXTRAS}\nimport runpy; runpy.run_module('{module}', run_name='__main__')")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: python -m {module} needs ")
    assert done.stderr.endswith(", of the extra [train]; pip install '.[train]' in a checkout\n")


def test_without_extras_help_lists_every_command_with_the_extra_that_it_needs() -> None:
    done = python(WITHOUT_EXTRAS, "--help", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    free, _, needing = done.stdout.partition("Commands that need the extra [train]:\n")
    for command in COMMANDS:
        assert f"\n  {command.name} " in f"\n{needing if command.extra else free}"
    assert max(map(len, done.stdout.splitlines())) <= 80


CALLS = {
    "choose-purifier": ["digits", "--work-dir", "{folder}"],
    "calibrate": ["{model}", "--data", "digits", "-o", "{out}"],
    "compare": ["{folder}"],
    "evaluate": ["{model}", "--recipe", "digits"],
    "harden": ["digits", "-o", "{out}"],
    "prune": ["digits", "-o", "{out}"],
    "score-model": ["digits", "-o", "{out}"],
}


@pytest.mark.parametrize("name", [command.name for command in COMMANDS if command.extra])
def test_without_extras_a_command_that_needs_one_says_which_to_install(
    name: str, tiny_model_path: Path, tmp_path: Path
) -> None:
    places = {"model": tiny_model_path, "folder": tmp_path, "out": tmp_path / "out"}
    done = python(WITHOUT_EXTRAS, name, *(argument.format(**places) for argument in CALLS[name]))
    assert done.returncode == 2
    assert done.stderr.startswith(f"Error: {name} needs ")
    assert "of the extra [train]; pip install '.[train]' in a checkout" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_command_the_help_is_printed_and_the_exit_code_is_2() -> None:
    done = python(WITHOUT_EXTRAS)
    assert done.returncode == 2
    assert "Error" not in done.stderr
    assert "\nCommands:\n" in done.stderr
