"""Every key of a recipe, from the classes that read it: `python -m s2ap_train.recipe.reference` writes the page."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from s2ap_defend.files import replace_file
from s2ap_train.ensemble import FAMILIES
from s2ap_train.pruning.methods import METHODS
from s2ap_train.recipe.recipe import Recipe

__all__ = ["document", "keys_of"]

_HEAD = """# Recipes

Every key that a recipe may have, as the code reads it: this page is written by `python -m s2ap_train.recipe.reference`.
A recipe is a `.toml` file, or a `.json` file with the same tables; `harden --set KEY=VALUE` changes one key of it, with
dots between tables: `--set members.jurors.count=2`. [harden.md](harden.md) says what a recipe does,
`train/s2ap_train/recipe/packaged/` has examples, and the `recipe.json` in the work folder of a hardening is what made
that file. Budgets and radii are of pixels in [0, 1].
"""
_ENTRY = re.compile(r"^ {4}(\w+(?:, \w+)*): (.*)$")
_WORDS = {
    "NoneType": "none",
    "str": "text",
    "Path": "path",
    "float": "number",
    "int": "whole number",
    "bool": "true or false",
}


def document() -> str:
    """The whole page."""
    tables: dict[str, type] = {}
    lines = [_HEAD, "## The recipe itself", "", *_table(Recipe, tables)]
    done: set[str] = set()
    for title, kinds in (
        ("Families of members", FAMILIES),
        ("Pruning methods", {n: METHODS[n].settings for n in METHODS}),
    ):
        lines += ["", f"## {title}", ""]
        for name, kind in kinds.items():
            lines += [f"### {name}", "", _first_line(kind), "", *_table(kind, tables), ""]
    lines += ["", "## Tables", ""]
    while left := [name for name in sorted(tables) if name not in done]:
        for name in left:
            done.add(name)
            lines += [f"### {name}", "", _first_line(tables[name]), "", *_table(tables[name], tables), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def keys_of(kind: type) -> dict[str, str]:
    """What every key of a table means, from the docstrings of its class and of those that it extends.

    Raises:
        ValueError: If a key has no line there.
    """
    said: dict[str, str] = {}
    for base in reversed(inspect.getmro(kind)):
        said |= dict(_attributes(inspect.getdoc(base) if "__doc__" in vars(base) else None))
    names = [name for name, annotation, _ in _fields(kind) if not _is_tag(name, annotation)]
    missing = [name for name in names if name not in said]
    if missing:
        raise ValueError(f"{kind.__name__} says nothing of {', '.join(missing)}")
    return {name: said[name] for name in names}


def _attributes(doc: str | None) -> Iterator[tuple[str, str]]:
    section = (doc or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    name, text = "", ""
    for line in section.splitlines():
        if match := _ENTRY.match(line):
            yield from ((one, text) for one in name.split(", ") if one)
            name, text = match.groups()
        else:
            text += " " + line.strip()
    yield from ((one, text) for one in name.split(", ") if one)


def _fields(kind: type) -> Iterator[tuple[str, Any, object]]:
    """(name, type, default) of every key; a default of `...` is none."""
    if issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield name, field.annotation, ... if field.default is PydanticUndefined else field.default
        return
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):  # type: ignore[arg-type]
        if one.default_factory is not dataclasses.MISSING:
            yield one.name, hints[one.name], one.default_factory()
        else:
            yield one.name, hints[one.name], ... if one.default is dataclasses.MISSING else one.default


def _is_tag(name: str, annotation: object) -> bool:
    """Whether a key only names the family or method that the table is of."""
    return get_origin(annotation) is Literal and name in {"family", "method"}


def _table(kind: type, tables: dict[str, type]) -> list[str]:
    said = {**keys_of(kind)}
    rows = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, annotation, default in _fields(kind):
        if _is_tag(name, annotation):
            continue
        value = _in_words(annotation, tables)
        rows.append(f"| `{name}` | {value} | {_default(default)} | {said[name].replace('|', chr(92) + '|')} |")
    return rows


def _in_words(annotation: Any, tables: dict[str, type]) -> str:  # noqa: ANN401
    """A type as a reader of recipes knows it; tables are noted."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in arguments)
    if origin in (Union, UnionType):
        if len(shown := [one for one in arguments if one not in FAMILIES.values()]) < len(arguments):
            return (
                "a [family](#families-of-members)"
                if not shown
                else " or ".join(_in_words(one, tables) for one in shown)
            )
        if any(one in {METHODS[name].settings for name in METHODS} for one in arguments):
            return "a [method](#pruning-methods)"
        return " or ".join(dict.fromkeys(_in_words(one, tables) for one in arguments))
    if origin in (tuple, list):
        inner = dict.fromkeys(_in_words(one, tables) for one in arguments if one is not Ellipsis)
        return f"list of {' or '.join(inner)}"
    if origin in (dict, Mapping):
        return f"tables by name: {_in_words(arguments[1], tables)}" if arguments[1] is not Any else "table"
    if hasattr(annotation, "__metadata__"):
        return _in_words(arguments[0], tables)
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation)):
        tables[annotation.__name__] = annotation
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    name = getattr(annotation, "__name__", str(annotation))
    return _WORDS.get(name, name)


def _default(value: object) -> str:
    if value is ...:
        return "needed"
    if value is None:
        return "none"
    if dataclasses.is_dataclass(value) or isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:.4g}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


if __name__ == "__main__":
    replace_file(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/recipes.md"), document().encode())
