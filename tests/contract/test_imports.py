import subprocess
import sys
from importlib.metadata import entry_points

import s2ap_defend
from s2ap_defend.commands.deferred import COMMANDS, ENTRY_POINTS

BLOCK_TORCH = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "sklearn", "foolbox", "pyautoattack", "safetensors", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import s2ap_defend
for module in pkgutil.walk_packages(s2ap_defend.__path__, "s2ap_defend."):
    if not module.name.endswith(("__main__", "serve.ray")):  # that needs the extra [ray]
        importlib.import_module(module.name)
        print(module.name)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_every_runtime_module_imports_where_torch_cannot_be_imported() -> None:
    done = python("-c", BLOCK_TORCH)
    assert done.returncode == 0, done.stderr
    assert {"s2ap_defend.classifier", "s2ap_defend.serve.app", "s2ap_defend.commands.main"} <= set(done.stdout.split())


def test_the_public_surface_is_what_is_documented() -> None:
    assert s2ap_defend.__all__ == [
        "DefendError",
        "DefendedClassifier",
        "DriftMonitor",
        "DriftReport",
        "EngineError",
        "InputError",
        "ModelFileError",
        "RecipeError",
        "Verdicts",
        "__version__",
    ]
    assert all(hasattr(s2ap_defend, name) for name in s2ap_defend.__all__)


def test_the_commands_that_need_an_extra_are_those_that_join_by_entry_point() -> None:
    joined = {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    assert set(joined) == {command.name for command in COMMANDS if command.extra}
    assert all(value.startswith(("s2ap_train.", "s2ap_export.")) for value in joined.values())
