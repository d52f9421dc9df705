"""Options that several commands share."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

from s2ap_defend.engines import Device
from s2ap_defend.errors import RecipeError
from s2ap_defend.executors import ExecutorName
from s2ap_defend.shipped import SHIPPED, shipped_file
from s2ap_defend.types import Resize


def complete_recipe(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001
    """What a shell offers for a recipe: names of packaged ones, found without importing the training package; files."""
    train = find_spec("s2ap_train")
    folders = [] if train is None else train.submodule_search_locations or []
    files = [file for folder in folders for file in Path(folder, "recipe", "packaged").glob("*.toml")]
    names = sorted(file.stem for file in files if file.stem.startswith(incomplete))
    return [CompletionItem(incomplete, type="file"), *map(CompletionItem, names)]  # bash drops what is before a file


class ModelPath(click.Path):
    """A model file, or the name of one that ships with the package."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """The path of the file."""
        return shipped_file(Path(str(super().convert(value, param, ctx))))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files, and the names."""
        names = [CompletionItem(name) for name in SHIPPED if name.startswith(incomplete)]
        return [*super().shell_complete(ctx, param, incomplete), *names]


class NamedModelPath(ModelPath):
    """A model file, which NAME= in front of it names; otherwise the stem of its own name does."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        """NAME=PATH, or PATH alone."""
        name, separator, path = str(value).partition("=")
        if not separator or Path(str(value)).exists():
            return str(super().convert(value, param, ctx))
        return f"{name}={super().convert(path, param, ctx)}"


def named_models(given: Sequence[str]) -> dict[str, Path]:
    """The files by the names of their models, from what NamedModelPath gives.

    Raises:
        RecipeError: If two have one name.
    """
    models: dict[str, Path] = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).stem, text
        if name in models:
            raise RecipeError(f"{models[name]} and {path} are both called {name!r}; name one of them: NAME={path}")
        models[name] = Path(path)
    return models


model_argument = click.argument("model", type=ModelPath())
device_option = click.option(
    "--device",
    type=click.Choice(get_args(Device)),
    default="auto",
    show_default=True,
    help="Where to run; 'auto' takes a CUDA device when there is one.",
)
executor_option = click.option(
    "--executor",
    type=click.Choice(get_args(ExecutorName)),
    help="Run the whole file, its stages one by one, or all of them for every image; verdicts are the same. Without "
    "it: the faster one.",
)
on_white_option = click.option(
    "--on-white", is_flag=True, help="Composite what is transparent in image files on white instead of refusing it."
)
resize_option = click.option(
    "--resize",
    type=click.Choice(["trained", *get_args(Resize)]),
    help="Resize image files of another size: 'trained' as the file says its training images were, 'crop' the largest "
    "central part of the model's shape, 'stretch' the whole image, 'pad' the same with black around it; without it "
    "they are refused.",
)
