"""What a user names as package.module:name: imported from the current folder or from where packages are installed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from s2ap_defend.errors import RecipeError

__all__ = ["named_object"]


def named_object(name: str, what: str, expected: str) -> object:
    """Import what is named; this runs the code of its module.

    Args:
        name: "package.module:name"; the module is searched in the current folder first.
        what: What it is, in messages, such as 'factory'.
        expected: What it should be, in messages, such as 'a function that returns a torch module'.

    Raises:
        RecipeError: If the module cannot be imported or has nothing of that name.
    """
    module_name, _, own_name = name.partition(":")
    if not module_name or not own_name or ":" in own_name:
        raise RecipeError(f"the {what} is {name!r}, expected package.module:function, as in mynets.small:make")
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        stem = module_name.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
        raise RecipeError(
            f"the {what} {name!r} names a file, expected the module: {stem}:{own_name}, from the folder that holds it"
        )
    here = str(Path.cwd())
    if here not in sys.path:  # an installed command does not look there by itself
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise RecipeError(
                f"{what} {name}: importing {module_name} failed: {error}; install what it needs"
            ) from error
        raise RecipeError(
            f"{what} {name}: there is no module {error.name}; run from the folder that holds it, or install it"
        ) from error
    except SystemExit as error:
        raise RecipeError(
            f"{what} {name}: importing {module_name} ends the program; put what the script does, such as reading its "
            'options, behind if __name__ == "__main__"'
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise RecipeError(
            f"{what} {name}: importing {module_name} failed with {type(error).__name__}: {error}; correct the module"
        ) from error
    if not hasattr(module, own_name):
        raise RecipeError(f"{what} {name}: {module_name} holds nothing called {own_name}, expected {expected}")
    found: object = getattr(module, own_name)
    return found
