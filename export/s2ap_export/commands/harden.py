"""`s2ap-defend harden`; light to import, the work is imported when it is asked for."""

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click
from rich.console import Console

from s2ap_defend.commands.options import complete_recipe
from s2ap_defend.errors import RecipeError
from s2ap_defend.progress import Reporter
from s2ap_defend.tables import harmless
from s2ap_defend.types import Resize
from s2ap_export.commands.cost_limit import CostLimit
from s2ap_export.commands.options import numbers, pixels, workers_option
from s2ap_export.commands.outputs import check_outputs, work_folder
from s2ap_export.commands.own_options import Own, check_options
from s2ap_export.commands.own_recipe import tables_of

if TYPE_CHECKING:
    from s2ap_export.hardening.harden import Hardened


class _Parsed(click.ParamType[object]):
    """A value that a function makes of the text; its ValueError is the user's."""

    def __init__(self, name: str, parse: Callable[[str], object], expected: str) -> None:
        self.name, self._parse, self._expected = name, parse, expected

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is not {self._expected}", param, ctx)


_LARGEST_SIDE = 4096  # of data.image_size


def _size(text: str) -> tuple[int, int]:
    sides = [int(part) for part in text.lower().replace("x", ",").split(",")]
    if not 1 <= len(sides) <= 2 or min(sides) < 2 or max(sides) > _LARGEST_SIDE:
        raise ValueError(text)
    return sides[0], sides[-1]


_NUMBERS = _Parsed("numbers", numbers, "numbers with commas between them, such as .485,.456,.406")
_EPS = _Parsed("eps", pixels, "a budget above 0 and at most 1, such as 8/255")
_SIZE = _Parsed("size", _size, f"a side or HEIGHTxWIDTH of 2 to {_LARGEST_SIDE} pixels, such as 64x48")
_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("recipe", required=False, shell_complete=complete_recipe)
@click.option("-o", "--output", type=_FILE, required=True, help="The model file to write.")
@click.option("--data", type=_FILE, help="Your images: a folder or zip of CLASS/IMAGE, or an .npz file.")
@click.option("--model", help="Your network as package.module:function that returns a torch module, or a name of ours.")
@click.option("--weights", type=_FILE, help="Its weights: safetensors, or a state_dict in .pt or .pth. Not retrained.")
@click.option("--onnx", type=_FILE, help="Your classifier as an ONNX file, instead of --model and --weights.")
@click.option(
    "--layout", type=click.Choice(["NCHW", "NHWC"]), help="How its graph takes images; by its input if not given."
)
@click.option("--robust-weights", type=_FILE, help="An adversarially trained checkpoint, instead of training one.")
@click.option("--robust-model", help="The network of --robust-weights, where it is not that of --model.")
@click.option("--robust-mean", type=_NUMBERS, metavar="R,G,B", help="As --mean, of the network of --robust-weights.")
@click.option("--robust-std", type=_NUMBERS, metavar="R,G,B", help="As --std, of the network of --robust-weights.")
@click.option("--mean", type=_NUMBERS, metavar="R,G,B", help="Mean that the network expects to be subtracted.")
@click.option("--std", type=_NUMBERS, metavar="R,G,B", help="Deviation that it expects pixels to be divided by.")
@click.option("--normalised-inside", "inside", is_flag=True, help="The network takes pixels in [0, 1] as they are.")
@click.option("--classes", type=_FILE, help="Class names, one a line, in the order of the network's outputs.")
@click.option("--image-size", "size", type=_SIZE, metavar="N|HxW", help="Resize the images to this.")
@click.option(
    "--resize",
    type=click.Choice(get_args(Resize)),
    help="How images of other sizes are brought to --image-size: 'crop' the largest central part of that shape "
    "(default), 'stretch' the whole image, 'pad' the same with black around it.",
)
@click.option("--eps", type=_EPS, help="l_inf budget of attacks in [0, 1] pixels, 8/255 by default.")
@click.option(
    "--effort",
    type=click.Choice(["quick", "standard", "full"]),
    help="How long it may take on your own data, standard by default: minutes, hours, or a GPU's day.",
)
@click.option(
    "--answer",
    type=click.Choice(["robust", "mixed", "accurate"]),
    help="Who gives the label of what is not flagged: the jury, classifier and jury mixed, or the classifier.",
)
@click.option(
    "--max-cost",
    type=_Parsed("TIMES", CostLimit.parse, "a number above 1, such as 3 (times its time) or 3flops (its operations)"),
    help="The most that a clean image may cost, as a multiple of the classifier alone: 3 in time, measured on one "
    "thread of this machine, or 3flops in operations.",
)
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), help="Where networks are trained.")
@click.option("--seed", type=int, help="Seed of split and training, instead of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key of the recipe.")
@click.option(
    "--work-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the checkpoints; by default OUTPUT.training next to the output.",
)
@click.option(
    "--workers",
    callback=workers_option,
    metavar="N|ray",
    help="Processes that train at the same time, one a core by default; 'ray': on the cluster of RAY_ADDRESS, or here.",
)
@click.option(
    "--choose",
    type=click.Choice(["recipe", "validation", "unmeasured"]),
    help="Who decides on the purifier: the recipe, next to a table of what others leave under a white-box attack on "
    "validation images (default); the best of that table, off and rho 0 among them; or the recipe without a table "
    "(default with --effort quick).",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done and how long it takes, and stop.")
@click.option("--overwrite", is_flag=True, help="Train finished parts again whose settings or data changed since.")
@click.option(
    "--strict",
    is_flag=True,
    help="Fail where the file is not what the recipe asks for, is below a simpler baseline, or its evaluation is no "
    "measure; otherwise the verdict and a list of what is weak say so.",
)
@click.option(
    "--external-data", is_flag=True, help="Put the weights into a file of their own next to OUTPUT, as above 1.9 GB."
)
@click.option("--report", type=_FILE, help="Write the evaluation as one HTML page; by default OUTPUT.html.")
def harden(
    recipe: str | None,
    output: Path,
    overrides: tuple[str, ...],
    work_dir: Path | None,
    workers: int | Literal["ray"] | None,
    choose: Literal["recipe", "validation", "unmeasured"] | None,
    dry_run: bool,
    overwrite: bool,
    strict: bool,
    external_data: bool,
    report: Path | None,
    **own: Any,  # noqa: ANN401  the fields of Own
) -> None:
    """Give your classifier, or that of RECIPE, back as one model file that defends itself.

    \b
      s2ap-defend harden --data photos/ --model mynets:build --weights best.pt -o model.onnx
      s2ap-defend harden digits -o model.onnx

    Without RECIPE, networks, trainings and attacks are chosen by your data, network and --effort. RECIPE is the name of
    a packaged recipe, such as 'digits', or the path of a .toml or .json file. Finished parts are stored in the
    work folder: after an interruption the same command goes on where it stopped.
    """  # noqa: D301  click's mark of a paragraph that is not filled
    options = Own(**own)
    check_options(recipe, options)  # before the imports, which take seconds
    page = output.with_name(f"{output.name}.html") if report is None else report
    folder = work_folder(output) if work_dir is None else work_dir
    check_outputs({"--output": output, "--report": page}, (Path(recipe or ""), *options.files))
    _check_apart({"--output": output, "--report": page, "--work-dir": folder}, options.data)

    from s2ap_defend.commands.decision_tables import print_frontier
    from s2ap_defend.sequential import asked_members
    from s2ap_export.hardening.harden import harden as run
    from s2ap_export.hardening.harden import look_before
    from s2ap_train.hardening.purifier_choice import print_choice
    from s2ap_train.jobs import check_workers
    from s2ap_train.recipe import hardening_recipe
    from s2ap_train.redteam.report.console import print_summary
    from s2ap_train.redteam.report.page import write_page

    check_workers(workers)
    tables = tables_of(recipe, options, overrides)
    settings = hardening_recipe(tables, recipe or "photos")
    console = Console()
    reporter = Reporter(console)
    quick = options.effort == "quick"
    by = None if choose == "unmeasured" or (choose is None and quick) else choose or "recipe"
    if dry_run:
        look_before(settings, output, folder, reporter, workers=workers, choose=by)
        return
    hardened = run(
        settings,
        output,
        folder,
        reporter,
        workers=workers,
        choose=by,
        overwrite=overwrite,
        tables=tables,
        strict=strict,
        external_data=external_data,
    )
    write_page(hardened.evaluation, page)
    if hardened.manifest.purifier.choice is not None:
        print_choice(hardened.manifest.purifier.choice, console)
    if hardened.manifest.decision.frontier is not None:
        print_frontier(hardened.manifest.decision.frontier, console)
    print_summary(hardened.evaluation, console)
    console.print(asked_members(hardened.manifest.to_test()), highlight=False, soft_wrap=True)
    for line in _closing(output, page, hardened):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_apart(written: Mapping[str, Path], data: Path | None) -> None:
    """Refuse to write into the folder of the images, where the next run would take it for data.

    Raises:
        RecipeError: With the first that lies there.
    """
    if data is None or not data.is_dir():
        return
    for option, path in written.items():
        if path.resolve().is_relative_to(data.resolve()):
            raise RecipeError(f"{option} {path} lies in {data}, which is read as images; write outside of it")


def _closing(output: Path, page: Path, hardened: "Hardened") -> list[str]:
    """What the answer buys and costs, what is weak, the files that were written, and what to do next."""
    frontier = hardened.manifest.decision.frontier
    lines = [] if frontier is None else [frontier.reason]
    named = shlex.quote(str(output))
    return [
        *lines,
        *(f"weak: {harmless(one.text)}" for one in hardened.manifest.weaknesses),
        f"wrote {output}",
        f"wrote {page}",
        "Next:",
        f"    s2ap-defend classify {named} IMAGE...",
        f"    s2ap-defend evaluate {named} --attacks standard --report report.html",
        f"    s2ap-defend serve {named}",
    ]
