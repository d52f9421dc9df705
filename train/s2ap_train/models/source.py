"""The source code that a user's network is made from, so that a change of it is noticed."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from s2ap_defend.errors import RecipeError

__all__ = ["source_digest"]


def source_digest(network: str | Mapping[str, Any]) -> str:
    """SHA-256 over the source or the file of a user's network; empty for one of ours, or where there is no source.

    It covers the module of the factory and every module that import statements reach from there, wherever it lies; of
    installed packages only the factory's own. What is imported by a name that is computed is not seen. A module is
    searched as when it is imported: in the current folder, unless that has its place on the path already.

    Args:
        network: "package.module:function", a table with `factory`, or a network of ours by name or table.
    """
    if not isinstance(network, str) and "file" in network:
        return hashlib.sha256(_read(Path(str(network["file"])))).hexdigest()
    factory = network if isinstance(network, str) else str(network.get("factory", ""))
    module, colon, _ = factory.partition(":")
    sources = _reached(module) if colon else {}
    if not sources:
        return ""
    digest = hashlib.sha256()
    for name, content in sorted(sources.items()):
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _reached(module: str) -> dict[str, bytes]:
    """Sources by name of the modules that importing one reads, as far as import statements say."""
    own, seen, waiting = module.partition(".")[0], dict[str, bytes](), [module]
    while waiting:
        top, *inner = waiting.pop().split(".")
        place = _place(top, own)
        for depth in range(len(inner) + 1 if place is not None else 0):
            name = ".".join([top, *inner[:depth]])
            path = None if name in seen or place is None else _file(place.joinpath(*inner[:depth]))
            if path is not None:
                seen[name] = _read(path)
                waiting.extend(_imports(seen[name], name if path.name == "__init__.py" else name.rpartition(".")[0]))
    return seen


def _place(top: str, own: str) -> Path | None:
    """Folder of a top-level package, or path of a module less its ending; None for one whose source does not count."""
    if not top or top in sys.stdlib_module_names or top.startswith("s2ap_"):
        return None
    here = str(Path.cwd())
    searched = sys.path if here in sys.path else [here, *sys.path]  # as when the factory is imported
    try:
        found = PathFinder.find_spec(top, searched) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None  # the error comes where the network is made
    if found is None:
        return None
    places = list(found.submodule_search_locations or ())
    place = Path(places[0]) if places else Path(found.origin or "").with_suffix("")
    installed = not {"site-packages", "dist-packages"}.isdisjoint(place.parts)
    return None if installed and top != own else place


def _file(place: Path) -> Path | None:
    files = (place / "__init__.py", place.parent / f"{place.name}.py")
    return next((path for path in files if path.is_file()), None)


def _read(path: Path) -> bytes:
    """What a file holds.

    Raises:
        RecipeError: If it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecipeError(
            f"{path}, which the network is made of, cannot be read ({error.strerror or error}); make it readable"
        ) from error


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Dotted names that the import statements of a module in a package may read."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # the error comes where it is imported
    inside = package.split(".") if package else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
