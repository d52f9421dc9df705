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

__all__ = ["source_digest"]


def source_digest(network: str | Mapping[str, Any]) -> str:
    """SHA-256 over the source of a user's network; empty for a network of ours, or where there is no source.

    It covers the module of the factory and all that it imports, directly or not, from the folder or the installed
    package that it lies in; what else is installed is not looked at. A package is searched in the current folder first,
    as when it is imported.

    Args:
        network: "package.module:function", a table with `factory`, or a network of ours by name or table.
    """
    factory = network if isinstance(network, str) else str(network.get("factory", ""))
    module, colon, _ = factory.partition(":")
    root = _root(module.partition(".")[0]) if colon else None
    if root is None:
        return ""
    digest = hashlib.sha256()
    for path in sorted(_reached(root, module)):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _root(top: str) -> Path | None:
    """Folder that a top-level module or package lies in."""
    try:
        found = PathFinder.find_spec(top, [str(Path.cwd()), *sys.path]) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None  # the error comes where the network is made
    if found is None:
        return None
    places = list(found.submodule_search_locations or ())
    if places:
        return Path(places[0]).parent
    return Path(found.origin).parent if found.origin and Path(found.origin).is_file() else None


def _reached(root: Path, module: str) -> set[Path]:
    """Source files below `root` that importing a module reads, as far as import statements say.

    Beside its own package a module reaches only into a project's folder, never into other installed packages.
    """
    installed = {"site-packages", "dist-packages"} & set(root.parts) or (root / "os.py").exists()
    top, seen, waiting = module.partition(".")[0], set[Path](), [module]
    while waiting:
        name = waiting.pop()
        if installed and name.partition(".")[0] != top:
            continue
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = _file(root.joinpath(*parts[:depth]))
            if path is not None and path not in seen:
                seen.add(path)
                waiting.extend(_imports(path, ".".join(parts[:depth])))
    return seen


def _file(place: Path) -> Path | None:
    files = (place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in files if path.is_file()), None)


def _imports(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file's import statements may read."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # the error comes where it is imported
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
