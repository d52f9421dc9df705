"""Options that several commands share."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

from s2ap_defend.engines import Device
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
