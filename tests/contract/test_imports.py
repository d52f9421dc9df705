import subprocess
import sys
from pathlib import Path

import s2ap_defend

BLOCK_TORCH = """
import importlib, pkgutil, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "sklearn", "foolbox", "pyautoattack", "safetensors", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import s2ap_defend
for module in pkgutil.walk_packages(s2ap_defend.__path__, "s2ap_defend."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_every_runtime_module_imports_where_torch_cannot_be_imported() -> None:
    done = python("-c", BLOCK_TORCH)
    assert done.returncode == 0, done.stderr
    assert {"s2ap_defend.classifier", "s2ap_defend.serve.app", "s2ap_defend.cli.main"} <= set(done.stdout.split())


def test_harden_without_torch_says_which_extra_to_install(tmp_path: Path) -> None:
    code = BLOCK_TORCH.split("import s2ap_defend", maxsplit=1)[0] + (
        "import sys; from s2ap_defend.cli.main import run; sys.exit(run(sys.argv[1:]))"
    )
    done = python("-c", code, "harden", "digits", "-o", str(tmp_path / "model.onnx"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 's2ap-defend[train]'" in done.stderr


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
