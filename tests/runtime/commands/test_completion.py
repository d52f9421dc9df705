"""Completion in bash, zsh and fish: the script that a shell loads, and the answers that it asks for."""

import io
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from s2ap_defend.commands.deferred import COMMANDS
from s2ap_defend.commands.main import main

SHELLS = ["bash", "zsh", "fish"]
NAMES = sorted(str(command.name) for command in COMMANDS)
COMMAND = Path(sys.executable).with_name("s2ap-defend")


def asked(instruction: str, line: str = "") -> subprocess.CompletedProcess[str]:
    """A process of its own, as a shell starts one."""
    return subprocess.run(
        [sys.executable, "-m", "s2ap_defend"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **typed(instruction, line)},
    )


def answer(instruction: str, line: str = "") -> str:
    """What a shell is told when `line` is typed up to its last word, which may be empty."""
    told = io.TextIOWrapper(raw := io.BytesIO())
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told), redirect_stderr(told):
        for name, value in typed(instruction, line).items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    told.flush()
    return raw.getvalue().decode()


def typed(instruction: str, line: str) -> dict[str, str]:
    """What a shell sets."""
    words = line.split(" ")
    last = words[-1] if instruction.startswith("fish") else str(len(words) - 1)
    return {"_S2AP_DEFEND_COMPLETE": instruction, "COMP_WORDS": line, "COMP_CWORD": last}


def values(shell: str, line: str) -> list[str]:
    """The words that are offered; files and folders as the shell is told to find them."""
    lines = answer(f"{shell}_complete", line).splitlines()
    if shell == "zsh":
        return [value if kind == "plain" else kind for kind, value in zip(lines[::3], lines[1::3], strict=True)]
    pairs = [line.partition(",") for line in lines if line]
    return [value.partition("\t")[0] if kind == "plain" else kind for kind, _, value in pairs]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_gets_a_script_that_asks_for_completions(shell: str) -> None:
    done = asked(f"{shell}_source")
    assert (done.returncode, done.stderr) == (0, "")
    script = done.stdout
    assert f"_S2AP_DEFEND_COMPLETE={shell}_complete" in script
    assert "Usage:" not in script


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("s2ap-defend p", ["plan", "prune"]),
        ("s2ap-defend ", NAMES),
        ("s2ap-defend nothing ", NAMES),  # as click does; nothing is refused while it is typed
        ("s2ap-defend inspect --j", ["--json"]),
        ("s2ap-defend harden digits --see", ["--seed"]),
        ("s2ap-defend classify --device c", ["cpu", "cuda"]),
        ("s2ap-defend inspect mo", ["file"]),
        ("s2ap-defend harden dig", ["file", "digits"]),
        ("s2ap-defend prune dig", ["file", "digits"]),
        ("s2ap-defend score-model ./", ["file"]),
        ("s2ap-defend choose-purifier svhn", ["file", "svhn-wrn28-4"]),
        ("s2ap-defend evaluate model.onnx --recipe cifar10-s", ["file", "cifar10-small"]),
    ],
)
def test_commands_options_choices_and_files_are_offered(shell: str, line: str, offered: list[str]) -> None:
    assert values(shell, line) == offered


def test_a_process_of_its_own_answers_the_same() -> None:
    line = "s2ap-defend harden dig"
    done = asked("fish_complete", line)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == answer("fish_complete", line)


def test_a_shell_that_is_not_known_is_no_traceback() -> None:
    done = asked("tcsh_source")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_completing_a_recipe_imports_nothing_of_training_but_its_command() -> None:
    code = (
        "import os, sys; from s2ap_defend.commands.main import cli; from click.shell_completion import shell_complete\n"
        "shell_complete(cli, {}, 's2ap-defend', '_S2AP_DEFEND_COMPLETE', 'bash_complete')\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('s2ap_train.', 'torch'))))"
    )
    environment = {**os.environ, "COMP_WORDS": "s2ap-defend prune dig", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)
    expected = "s2ap_train.commands s2ap_train.commands.prune s2ap_train.commands.prune.cli"
    assert done.stdout.splitlines() == ["file,dig", "plain,digits", expected], done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.skipif(not COMMAND.exists(), reason="the command is not next to this Python")
def test_bash_itself_completes_with_the_line_of_the_readme() -> None:
    script = """
        eval "$(_S2AP_DEFEND_COMPLETE=bash_source s2ap-defend)"
        complete -p s2ap-defend
        compopt() { :; }  # it is for a shell in which somebody types
        COMP_WORDS=(s2ap-defend pl) COMP_CWORD=1
        _s2ap_defend_completion s2ap-defend
        echo "${COMPREPLY[@]}"
        COMPREPLY=() COMP_WORDS=(s2ap-defend harden dig) COMP_CWORD=2
        _s2ap_defend_completion s2ap-defend
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert done.stdout.splitlines()[-2:] == ["plan", "digits"], done.stderr
    assert "-F _s2ap_defend_completion s2ap-defend" in done.stdout


def test_the_readme_names_the_three_shells() -> None:
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert all(f"_S2AP_DEFEND_COMPLETE={shell}_source s2ap-defend" in text for shell in SHELLS)
