"""`s2ap-defend bench`: what a file costs, next to its bare classifier and what the machine allows."""

import sys
from pathlib import Path
from typing import Literal, get_args

import click
import orjson
from rich.console import Console

from s2ap_defend.bench.choices import Clock, TrafficKind
from s2ap_defend.commands.options import device_option, model_argument, on_white_option, resize_option
from s2ap_defend.engines import Device
from s2ap_defend.errors import ModelFileError
from s2ap_defend.executors import USUAL, ExecutorName
from s2ap_defend.files import check_writable, replace_file
from s2ap_defend.types import Resize

LARGEST_BATCH = 4096


def batch_sizes(ctx: click.Context, param: click.Parameter, text: str) -> tuple[int, ...]:  # noqa: ARG001
    """Batch sizes from a list such as 1,8,64.

    Raises:
        click.BadParameter: If it is none.
    """
    try:
        sizes = tuple(int(one) for one in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or max(sizes) > LARGEST_BATCH:
        raise click.BadParameter(f"{text!r} is no list of batch sizes from 1 to {LARGEST_BATCH}, such as 1,8,64")
    return tuple(sorted(set(sizes)))


@click.command()
@model_argument
@click.option("--batch", callback=batch_sizes, default="1,8,64,256", show_default=True, help="Images of a call.")
@click.option(
    "--traffic",
    type=click.Choice(get_args(TrafficKind)),
    default="clean",
    show_default=True,
    help="Images as they come; 'mixed' are clean and attacked ones in turn.",
)
@click.option(
    "--data",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Clean images: files, folders, .npy or .npz; by default those of the folder 'demo' next to MODEL, else noise.",
)
@click.option(
    "--attacked",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Attacked images, in the same ways; by default those of the folder 'demo' next to MODEL.",
)
@click.option(
    "--executor",
    "executors",
    multiple=True,
    type=click.Choice(get_args(ExecutorName)),
    help=f"By default {' and '.join(USUAL)}; 'at_once' asks all members of every image, without a branch.",
)
@device_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads inside one operator.")
@click.option(
    "--clock",
    type=click.Choice(get_args(Clock)),
    default="wall",
    show_default=True,
    help="'processor' counts what this process computes, for one thread of a CPU on a machine that is busy.",
)
@click.option("--rounds", type=click.IntRange(1), default=20, show_default=True, help="In which all take turns.")
@click.option(
    "--soak",
    type=click.IntRange(0),
    default=0,
    metavar="BATCHES",
    help="Also run so many batches of one image in a row, and 8 threads at once: memory and verdicts stay.",
)
@on_white_option
@resize_option
@click.option("--json", "file", type=click.Path(path_type=Path), metavar="FILE", help="Write all figures here as well.")
def bench(
    model: Path,
    batch: tuple[int, ...],
    traffic: TrafficKind,
    data: tuple[Path, ...],
    attacked: tuple[Path, ...],
    executors: tuple[ExecutorName, ...],
    device: Device,
    threads: int | None,
    clock: Clock,
    rounds: int,
    soak: int,
    on_white: bool,
    resize: Resize | Literal["trained"] | None,
    file: Path | None,
) -> None:
    """Time a model file next to its bare classifier, its stages and what this machine allows.

    Everything takes turns in one run, so that multiples hold on a machine that does other work, too.
    """
    from s2ap_defend.bench.measure import measure
    from s2ap_defend.bench.report import as_json, print_report
    from s2ap_defend.bench.traffic import find_traffic
    from s2ap_defend.images import ImageFiles, chosen_resize
    from s2ap_defend.model_file import open_model_file
    from s2ap_defend.progress import Reporter

    if file is not None:
        check_writable(file)
    opened = open_model_file(model)
    described = opened.manifest.input
    files = ImageFiles(described.shape, on_white, chosen_resize(resize, described.resize))
    found = find_traffic(traffic, files, model, data=data, attacked=attacked, most=max(*batch, 64))
    console = Console(highlight=False, soft_wrap=True)
    messages = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    messages.line(f"Traffic: {found.source}")
    if not found.typical:
        messages.line("Warning: noise is no clean image, and most of it is flagged; give images with --data")
    measured = measure(
        opened,
        found,
        batches=batch,
        executors=executors or USUAL,
        device=device,
        threads=threads,
        clock=clock,
        rounds=rounds,
        soak=soak,
        reporter=messages,
    )
    print_report(measured, found, opened.manifest, console)
    if file is not None:
        document = as_json(measured, found, opened.manifest, sys.argv[1:])
        try:
            replace_file(file, orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
        except OSError as error:
            raise ModelFileError(f"{file} cannot be written: {error.strerror or error}") from error
