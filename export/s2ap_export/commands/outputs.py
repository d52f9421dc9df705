"""Files and folders that a command writes: each file can be written, and is none that it reads or writes besides."""

from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from s2ap_defend.errors import RecipeError
from s2ap_defend.files import check_writable

__all__ = ["check_outputs", "work_folder"]


def work_folder(model: Path) -> Path:
    """Where `harden` keeps the parts of a file and its recipe, unless it is said otherwise: next to it."""
    return model.with_name(f"{model.name}.training")


def check_outputs(outputs: Mapping[str, Path], read: Iterable[Path]) -> None:
    """Refuse outputs that cannot be written, or would overwrite what is read, or each other.

    Args:
        outputs: By the options that name them.
        read: Files that the command reads; those that are not there do not count.

    Raises:
        ModelFileError: If an output cannot be written.
        RecipeError: If it is one of these.
    """
    there = [path for path in read if path.is_file()]
    for option, output in outputs.items():
        check_writable(output)
        for taken in there:
            if _same(output, taken):
                raise RecipeError(
                    f"{option} {output} would overwrite {taken}, which is read; name another file to write"
                )
    for (one, first), (other, second) in combinations(outputs.items(), 2):
        if _same(first, second):
            raise RecipeError(f"{one} and {other} both write {second}; name two files")


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, links followed, or would be."""
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))
