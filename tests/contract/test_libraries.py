"""Which libraries each package may import: the runtime those of a plain installation, the others those of [train]."""

import ast
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from s2ap_defend.commands.main import TRAIN_MODULES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
THROUGH = {"google": ("protobuf", "onnx"), "pydantic_core": ("pydantic-core", "pydantic")}
"""Modules of a distribution that a dependency requires itself, because its own classes come from there."""
OWN = {"s2ap_defend", "s2ap_export", "s2ap_train"}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def names(requirements: list[str]) -> set[str]:
    """The distributions of requirements, other platforms' included."""
    return {canonical(Requirement(text).name) for text in requirements}


DISTRIBUTIONS = {module: {canonical(name) for name in found} for module, found in packages_distributions().items()}
DEPENDENCIES, TRAIN = names(PROJECT["dependencies"]), names(PROJECT["optional-dependencies"]["train"])


def imported(folder: str) -> dict[str, str]:
    """Libraries that are imported anywhere below a folder, in functions and for types too, and where."""
    found = {}
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [str(node.module)]
            else:
                continue
            for module in modules:
                found[module.partition(".")[0]] = f"{file.relative_to(ROOT)}:{node.lineno}"
    return {module: place for module, place in found.items() if module not in OWN | sys.stdlib_module_names}


def of_dependencies(module: str) -> bool:
    return module in THROUGH or bool(DISTRIBUTIONS.get(module, set()) & DEPENDENCIES)


def test_the_runtime_imports_nothing_that_a_plain_installation_may_lack() -> None:
    libraries = imported("runtime")
    assert {"numpy", "onnx", "onnxruntime", "click", "pydantic"} <= set(libraries)
    elsewhere = {"model_signing"}  # an extra of its own, which signature.py asks for
    elsewhere |= {"grpc", "grpc_health", "tritonclient"}  # of the extra that serve/grpc asks for
    elsewhere |= {"opentelemetry"}  # of the extra that serve/tracing.py asks for
    elsewhere |= {"ray", "yaml"}  # of the extra that serve/ray.py asks for
    lacking = {module: place for module, place in libraries.items() if not of_dependencies(module)}
    assert {module: lacking[module] for module in lacking.keys() - elsewhere} == {}


@pytest.mark.parametrize(("module", "required", "dependency"), [(module, *pair) for module, pair in THROUGH.items()])
def test_what_comes_with_a_dependency_is_required_by_it(module: str, required: str, dependency: str) -> None:
    assert dependency in DEPENDENCIES
    assert required in names(distribution(dependency).requires or [])
    assert required in DISTRIBUTIONS[module]


@pytest.mark.parametrize("folder", ["train", "export"])
def test_what_training_and_export_import_beyond_that_is_known_to_be_of_the_extra_train(folder: str) -> None:
    libraries = {module: place for module, place in imported(folder).items() if not of_dependencies(module)}
    elsewhere = {"ray"}  # an extra of its own, which on_ray.py asks for
    assert {module: libraries[module] for module in libraries.keys() - TRAIN_MODULES - elsewhere} == {}


def test_the_modules_of_the_extra_train_cover_its_distributions() -> None:
    installed = TRAIN & set().union(*DISTRIBUTIONS.values())
    assert installed - set().union(*(DISTRIBUTIONS.get(module, set()) for module in TRAIN_MODULES)) == set()


def test_none_of_them_may_be_imported_by_the_runtime() -> None:
    contracts = ConfigParser()
    contracts.read(ROOT / ".importlinter")
    assert set(contracts["importlinter:contract:no-torch"]["forbidden_modules"].split()) >= TRAIN_MODULES
