"""What the documents name is there: files, headings, modules, options, metrics."""

import pkgutil
import re
from pathlib import Path

import click
import pytest
from tests.docs.documents import DOCUMENTS, ROOT, inline

from s2ap_defend.commands.main import cli

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MODULE = re.compile(r"s2ap_(?:defend|export|train)(?:\.\w+)+")
_FILE = re.compile(r"[\w-]+(?:/[\w.-]+)+\.(?:py|json|md|png|toml)")
_OPTION = re.compile(r"--[a-z][a-z0-9-]+")
_OTHERS = {"--help", "--version", "--exclude-editable", "--http2"}
"""Of every command, and of other programs."""

every = pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda path: path.name)


def heading_anchors(document: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(document: Path) -> list[str]:
    missing = []
    for link in _LINK.findall(document.read_text()):
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if "://" not in link and (not target.exists() or (anchor and anchor not in heading_anchors(target))):
            missing.append(link)
    return missing


@every
def test_links_lead_to_files_and_headings(document: Path) -> None:
    assert missing_links(document) == []


def test_a_link_to_nothing_is_found(tmp_path: Path) -> None:
    document = tmp_path / "planted.md"
    document.write_text("# One\n[a](other.md) [b](#two) [c](#one) [d](https://example.org/x)\n")
    assert missing_links(document) == ["other.md", "#two"]


@every
def test_modules_and_their_contents_exist(document: Path) -> None:
    for name in _MODULE.findall(document.read_text().replace("s2ap_defend.commands", "")):
        pkgutil.resolve_name(name)


def test_rooms_that_the_architecture_names_without_their_package_exist() -> None:
    named = [
        code for code in inline((ROOT / "docs/architecture.md").read_text()) if re.fullmatch(r"[a-z]\w*\.[\w.]+", code)
    ]
    missing = [code for code in named if not code.startswith("s2ap_") and not any(map(exists, rooms(code)))]
    assert missing == []


def rooms(code: str) -> list[str]:
    return [f"{package}.{code}" for package in ("s2ap_train", "s2ap_export", "s2ap_defend")]


def exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@every
def test_files_of_the_project_that_are_named_exist(document: Path) -> None:
    roots = (ROOT, ROOT / "docs", ROOT / "train/s2ap_train", ROOT / "runtime", ROOT / "export")
    named = [code for code in inline(document.read_text()) if _FILE.fullmatch(code)]
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []


@every
def test_options_that_are_named_exist(document: Path) -> None:
    text = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    known = set(_OPTION.findall(text)) | _OTHERS
    for name in cli.list_commands(click.Context(cli)):
        context = cli.get_command(click.Context(cli), name).make_context(name, [], resilient_parsing=True)
        known |= {option for parameter in context.command.params for option in parameter.opts}
    named = {option for code in inline(document.read_text()) for option in _OPTION.findall(code)}
    assert named - known == set()


def test_the_metrics_that_are_named_exist() -> None:
    source = (ROOT / "runtime/s2ap_defend/serve/metrics.py").read_text()
    named = re.findall(r"`(s2ap_\w+?)(?:_total|_info)?`", (ROOT / "docs/serving.md").read_text())
    assert [name for name in named if f'"{name}' not in source] == []
