"""Model files that come with the package, by name: `s2ap-defend classify fashion image.png`."""

from collections.abc import Mapping
from pathlib import Path

SHIPPED: Mapping[str, str] = {"cifar10-small": "cifar10-small.onnx", "fashion": "fashion.onnx"}
"""File names by the name that stands for a path."""
_FOLDERS = (Path(__file__).parent / "models", Path(__file__).parents[2] / "models")  # of an installation, of a checkout


def shipped_file(path: Path) -> Path:
    """The file that a path means: the path itself, or the shipped file of that name where no such path exists."""
    name = SHIPPED.get(str(path))
    if name is None or path.exists():
        return path
    return next((folder / name for folder in _FOLDERS if (folder / name).exists()), path)
