"""`s2ap-defend calibrate`; light to import, the work is imported when it is asked for."""

from pathlib import Path
from typing import Literal

import click
import orjson
from rich.console import Console

from s2ap_defend.commands.options import device_option, model_argument
from s2ap_defend.engines import Device
from s2ap_defend.files import check_writable
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.sequential import Answer


@click.command()
@model_argument
@click.option(
    "--data",
    "source",
    required=True,
    metavar="SOURCE",
    help="Clean images: a folder or zip of CLASS/IMAGE, an .npz file, or a recipe, whose calibration part is taken.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Where the data of a recipe lies.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File to write; by default MODEL.calibrated.onnx."
)
@click.option("--alpha", type=float, default=0.02, show_default=True, help="False-alarm rate.")
@click.option(
    "--calibrate-on",
    "on",
    type=click.Choice(["correct", "all"]),
    default="correct",
    show_default=True,
    help="Whether alpha counts the images that are answered right, or all; 'all' needs no labels.",
)
@click.option(
    "--answer",
    type=click.Choice(["robust", "mixed", "accurate"]),
    help="Who gives the label of an image that is not flagged: the jury, classifier and jury mixed, or the classifier; "
    "the file's by default.",
)
@click.option("--min-accept", type=click.IntRange(1), help="Members asked before 'clean'; the file's by default.")
@click.option("--limit", type=click.IntRange(1), help="At most so many images, a random sample.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of a table.")
@device_option
def calibrate(
    model: Path,
    source: str,
    root: Path | None,
    output: Path | None,
    alpha: float,
    on: Literal["correct", "all"],
    answer: Answer | None,
    min_accept: int | None,
    limit: int | None,
    as_json: bool,
    device: Device,
) -> None:
    """Give MODEL a new alarm boundary from new clean images, and another answer if asked, and write a new file.

    The boundary is conformal: on images like these the false-alarm rate is at most alpha, on average over samples of
    this size. Images must not be ones that the file was trained, chosen or fitted on. Nothing is trained; what
    was measured with the old decision is left out of the new file.
    """
    from s2ap_defend.verification.golden import write_with_golden
    from s2ap_export.commands.calibrate.answering import answered_by, composed
    from s2ap_export.commands.calibrate.clean_data import load_clean_data
    from s2ap_export.commands.calibrate.recalibration import recalibrate, recalibrated_manifest, recalibrated_model
    from s2ap_export.commands.calibrate.report import print_report, to_json
    from s2ap_train.calibration.settings import check_alpha
    from s2ap_train.calibration.stage_engines import StageEngines

    check_alpha(alpha)
    file = open_model_file(model)
    output = model.with_name(f"{model.stem}.calibrated{model.suffix}") if output is None else output
    check_writable(output)
    console = Console()
    messages = Console(stderr=True) if as_json else console
    data = load_clean_data(source, file.manifest, root=root, limit=limit, labelled=on == "correct")
    for warning in data.warnings:
        messages.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    with Reporter(messages).step("images asked", 1) as step:
        answers = StageEngines.from_file(file, device=device).answers(data.images, data.labels)
        step.advance(data.description)
    answering = answered_by(file.manifest, answer)
    result = recalibrate(
        file.manifest.test,
        answering.test,
        answers,
        alpha=alpha,
        on=on,
        min_accept=min_accept,
        labelled=data.labels is not None,
    )
    manifest = recalibrated_manifest(file.manifest, result.tables, answering.decision)
    same = answering.decision == file.manifest.decision
    graph = recalibrated_model(file.proto, result.test) if same else composed(file, result.test)
    write_with_golden(graph, manifest, output, external_data=bool(file.data_locations) or None)
    if as_json:
        more = {"measurements_dropped": len(file.manifest.measured), "output": str(output)}
        click.echo(orjson.dumps({**to_json(result), **more}, option=orjson.OPT_INDENT_2).decode())
        return
    print_report(result, console)
    console.print(f"{manifest.decision.in_words}", markup=False, highlight=False, soft_wrap=True)
    if file.manifest.measured:
        messages.print(
            "what was measured with the old decision is not in the new file; measure it with s2ap-defend evaluate",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"wrote {output}", markup=False, highlight=False, soft_wrap=True)
