"""Recipes as text: found, read, overridden, and explained where they are wrong."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from s2ap_defend.errors import RecipeError
from s2ap_train.ensemble import FAMILIES
from s2ap_train.pruning.methods import METHODS
from s2ap_train.settings import REFUSED

RECIPE_FILE = "recipe.json"
"""The tables that a file was hardened by, in its work folder."""
_SHORT_FOR = {"data": "source", "model": "name"}
"""Keys whose table may be given as one name, and what that name is."""


def packaged_recipes() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("s2ap_train.recipe") / "packaged"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def read_recipe(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The tables of a packaged recipe, of a .toml file or of a .json file, with overrides applied in order.

    Raises:
        RecipeError: If there is no such recipe, it is not TOML or JSON, or an override cannot be applied.
    """
    if name.endswith((".toml", ".json")):
        try:
            text = read_text(Path(name))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name} cannot be read: {error}; give a text file in UTF-8") from error
    elif name in packaged_recipes():
        text = (resources.files("s2ap_train.recipe") / "packaged" / f"{name}.toml").read_text(encoding="utf-8")
    else:
        hint = _nearest(name, packaged_recipes())
        raise RecipeError(f"recipe {name!r} is neither packaged nor the path of a .toml or .json file; {hint}")
    data = _parsed(text, name)
    for override in overrides:
        apply_override(data, override)
    return data


def read_text(path: Path) -> str:
    """The text of a file that a user wrote, in UTF-8, without the byte order mark that some editors put first."""
    return path.read_text(encoding="utf-8-sig")


def _parsed(text: str, name: str) -> dict[str, Any]:
    if not name.endswith(".json"):
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe {name} is not TOML: {error}") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"recipe {name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {name} holds a {type(data).__name__}, expected an object of tables")
    return data


def option_overrides(
    keys: Mapping[str, str], options: Mapping[str, str | float | Path | None], *, numbers: Sequence[str] = ()
) -> list[str]:
    """Options of a command as overrides of the recipe; options that are None are left out.

    Args:
        keys: Key of the recipe by the option's name.
        options: Values by the option's name, in the order in which they are applied.
        numbers: Options whose text is a number, not a string.
    """
    return [
        f"{keys[option]}={value}"
        if isinstance(value, (int, float)) or option in numbers
        else f'{keys[option]}="{value}"'
        for option, value in options.items()
        if value is not None
    ]


def apply_override(data: dict[str, Any], override: str) -> None:
    """Change a key of a recipe's tables, as 'key.subkey=value' with a TOML value says.

    Raises:
        RecipeError: If there is no '=', or a value is where a table should be.
    """
    key, equals, value = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r} has no '='; write --set seed=1")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    *path, last = key.strip().split(".")
    table = data
    for part in path:
        if part in _SHORT_FOR and isinstance(table.get(part), str):
            table[part] = {_SHORT_FOR[part]: table[part]}
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override!r}: {part} is a value, not a table")
    table[last] = parsed


def explain(error: ValidationError, kind: object) -> str:
    """What is wrong in a recipe of this kind, in one line: the key, the nearest name that exists, or the reason."""
    first = error.errors()[0]
    path = _path(first["loc"])
    place = ".".join(path)
    if first["type"] == REFUSED:
        inner = _refused_table(_kind_at(kind, first["loc"]), first["input"])
        placed = first["msg"].startswith((f"{place} ", f"{place}."))
        return first["msg"] if placed else f"{'.'.join((*path, *inner))}: {first['msg']}"
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"key {place} is not known; {_nearest(path[-1], _keys_at(kind, first['loc'][:-1]))}"
    if first["type"] in {"missing", "missing_argument"}:
        return f"key {place} is missing"
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        key, known = ("family", list(FAMILIES)) if _is_member(first["loc"]) else ("method", ["s2ap", *METHODS])
        found = first["input"].get(key) if isinstance(first["input"], dict) else first["input"]
        return f"{place}.{key} is {'missing' if found is None else repr(found)}; {_nearest(str(found), known)}"
    reasons = dict.fromkeys(
        one["msg"].removeprefix("Value error, ") for one in error.errors() if _path(one["loc"]) == path
    )
    shown = "not right" if isinstance(first["input"], dict) else repr(first["input"])
    return f"{place} is {shown}: {' or '.join(reasons)}"


def _path(location: tuple[int | str, ...]) -> list[str]:
    """Keys of a place in a recipe, without what pydantic adds for the branch of a union."""
    path = [str(part) for place, part in enumerate(location) if not _is_branch(location, place)]
    return (
        path[:-1]
        if path[-1] in {"float", "int", "str", "[key]"} or path[-1].startswith(("literal[", "dict["))
        else path
    )


def _is_member(location: tuple[int | str, ...]) -> bool:
    """Whether this is the table of one family of members."""
    return len(location) == 2 and location[0] == "members"


def _is_branch(location: tuple[int | str, ...], place: int) -> bool:
    """Whether pydantic added this part: the method after `pruning`, the family after the name of a table of members."""
    if _is_member(location[:place]):
        return location[place] in FAMILIES
    return place > 0 and location[place - 1] == "pruning" and location[place] in METHODS


def _refused_table(kind: Any, table: object) -> tuple[str, ...]:  # noqa: ANN401
    """Keys that lead from a table that was refused to the one inside it that is refused by itself, if there is one."""
    if not isinstance(table, dict):
        return ()
    method = table.get("method")
    named = str(table.get("base") if method == "s2ap" else method)
    types = _field_types(METHODS[named].settings if named in METHODS else kind)
    for key, value in table.items():
        inner = _present(types.get(key))
        if isinstance(value, dict) and is_dataclass(inner):
            try:
                TypeAdapter(inner).validate_python(value)
            except RecipeError:
                return (key, *_refused_table(inner, value))
            except ValidationError:
                continue
    return ()


def _keys_at(kind: object, path: tuple[int | str, ...]) -> list[str]:
    return list(_field_types(_kind_at(kind, path)))


def _kind_at(kind: Any, path: tuple[int | str, ...]) -> Any:  # noqa: ANN401
    for place, part in enumerate(path):
        if _is_branch(path, place):
            kind = FAMILIES[str(part)] if _is_member(path[:place]) else METHODS[str(part)].settings
        elif isinstance(part, int):  # an entry of a list
            kind = next(iter(get_args(kind)), kind)
        else:
            kind = _present(_field_types(kind).get(str(part), kind))
    return kind


def _present(kind: Any) -> Any:  # noqa: ANN401
    """The type without None."""
    alternatives = [one for one in get_args(kind) if one is not type(None)]
    return alternatives[0] if len(alternatives) == 1 and isinstance(kind, UnionType) else kind


def _field_types(kind: object) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: hints[field.name] for field in fields(kind)}
    return {}


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
