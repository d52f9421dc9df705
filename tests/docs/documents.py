"""What the README and docs/ hold besides prose: blocks of shell, Python and TOML, and code inside lines."""

import ast
import re
import shlex
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
_COMMAND = re.compile(r"(?:\.venv/bin/)?(?:s2ap-defend|make|python|pip install)(?= )")
_LOOP = re.compile(r"for (\w+) in ([^;]+); do")
_PLACEHOLDERS = {"RECIPE": "digits", "N": "2", "E": ".1", "L": ".4", "P": "3", "D": "cpu", "MINUTES": "5"}


@dataclass(frozen=True)
class Command:
    """One command as a reader would type it.

    Attributes:
        line: As it stands in the document, on one line.
        complete: Whether it can be run as it stands: no synopsis, and not a mention inside a sentence.
    """

    line: str
    complete: bool

    def argvs(self) -> list[list[str]]:
        """Its words, as often as needed to have every alternative `a|b` of a synopsis once."""
        words = shlex.split(self.line, comments=True)
        if not self.complete:
            words = [word.strip("[]") if _is_synopsis(self.line) else word for word in words]
            words = [word for word in words if word not in {"...", "options"}]
        choices = [word.split("|") if not self.complete else [word] for word in words]
        return [
            [_PLACEHOLDERS.get(word, word) for word in (choice[min(i, len(choice) - 1)] for choice in choices)]
            for i in range(max(map(len, choices)))
        ]


def blocks(text: str) -> list[str]:
    """The indented blocks, without their indentation."""
    found = re.findall(r"(?:(?<=\n\n)|\A)((?:    .*\n|\n(?=    ))+)", text + "\n")
    return [re.sub("^    ", "", block, flags=re.MULTILINE).strip("\n") for block in found]


def inline(text: str) -> list[str]:
    """Code inside lines."""
    prose = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def is_toml(block: str) -> bool:
    """Whether a block is TOML: tables or keys of a recipe, or a file of the server."""
    try:
        return bool(tomllib.loads(block))
    except tomllib.TOMLDecodeError:
        return False


def is_python(block: str) -> bool:
    """Whether a block is Python that does something."""
    try:
        tree = ast.parse(block)
    except SyntaxError:
        return False
    return not is_toml(block) and any(isinstance(node, ast.Call) for node in ast.walk(tree))


def text_of(name: str, begin: str = "", end: str = r"\Z") -> str:
    """A document below docs/ from the first `begin` up to the next match of `end`."""
    text = (ROOT / "docs" / name).read_text()
    return re.search(f"{re.escape(begin)}.*?(?={end})", text, re.DOTALL)[0]


def rows(text: str) -> list[list[str]]:
    """Cells of the tables in a text."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def codes(text: str) -> list[str]:
    """What stands between backticks, as it is."""
    return re.findall(r"`([^`]+)`", text)


def commands(text: str) -> list[Command]:
    """All commands of a document in order: those of its blocks, loops unrolled, then those in its lines."""
    found = []
    for block in blocks(text):
        if not is_toml(block) and not is_python(block):
            found += [Command(line, not _is_synopsis(line)) for line in _unrolled(block) if _COMMAND.match(line)]
    return found + [Command(code, complete=False) for code in inline(text) if _COMMAND.match(code)]


def _is_synopsis(line: str) -> bool:
    unquoted = re.sub("'[^']*'", "", line)
    return re.search(r"\s\[", unquoted) is not None or any(word in _PLACEHOLDERS for word in unquoted.split())


def _unrolled(block: str) -> list[str]:
    joined = re.sub(r"\s*\\\n\s*|\n {4,}", " ", block)
    loops = {name: values.split() for name, values in _LOOP.findall(joined)}
    lines = []
    for line in (line.strip() for line in joined.splitlines()):
        names = [name for name in loops if f"${name}" in line]
        for values in product(*(loops[name] for name in names)):
            filled = line
            for name, value in zip(names, values, strict=True):
                filled = filled.replace(f"${name}", value)
            lines.append(filled)
    return lines
