"""`s2ap-defend export`: a model file as others' servers and TensorRT want it."""

from pathlib import Path
from typing import Literal

import click

from s2ap_defend.commands.options import model_argument
from s2ap_defend.model_file import ModelFile
from s2ap_defend.tables import harmless


@click.command()
@model_argument
@click.option(
    "--triton",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write a model repository for NVIDIA's Triton Inference Server here.",
)
@click.option(
    "--tensorrt",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Build TensorRT engines of this machine's GPU here, one for each stage and size of batch.",
)
@click.option("--name", help="Of the model in Triton; by default the stem of MODEL.")
@click.option("--max-batch", type=click.IntRange(1), default=64, show_default=True, help="Images of a batch in Triton.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where Triton runs it."
)
@click.option("--expose-evidence", is_flag=True, help="Triton gives all outputs to clients: an oracle for attackers.")
def export(
    model: Path,
    triton: Path | None,
    tensorrt: Path | None,
    name: str | None,
    max_batch: int,
    device: Literal["cpu", "cuda"],
    expose_evidence: bool,
) -> None:
    """Write MODEL for Triton (--triton DIR) or build its TensorRT engines (--tensorrt DIR), one of the two.

    Triton is not needed here; where it runs the python model, s2ap-defend must be installed. Engines are built on the
    GPU that runs them; those that fit it are left as they are.
    """
    from s2ap_defend.model_file import open_model_file

    if (triton is None) == (tensorrt is None):
        raise click.UsageError("give --triton DIR or --tensorrt DIR, one of the two")
    if triton is None:
        given = click.get_current_context().get_parameter_source
        for option in ("name", "max_batch", "device", "expose_evidence"):
            if given(option) is click.core.ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{option.replace('_', '-')} is for --triton")
    file = open_model_file(model)
    if tensorrt is not None:
        _build(file, tensorrt)
    elif triton is not None:
        from s2ap_defend.triton.repository import write_repository

        for place in write_repository(
            file, triton, name=name, max_batch=max_batch, device=device, evidence=expose_evidence
        ):
            click.echo(f"wrote {harmless(str(place))}")


def _build(file: ModelFile, folder: Path) -> None:
    from s2ap_defend.executors.staged import StagedExecutor
    from s2ap_defend.tensorrt.build import build_engine, this_machine
    from s2ap_defend.tensorrt.index import write_engines
    from s2ap_defend.tensorrt.plan import plan_engines

    planned = plan_engines(file)
    done = write_engines(folder, planned, this_machine(), lambda engine: build_engine(engine, folder))
    for name, reason in done.built.items():
        click.echo(f"built {harmless(str(folder / name))}: {harmless(reason)}")
    click.echo(f"{len(done.fitting)} of {len(planned)} engines fitted already")
    StagedExecutor.of(file, device="tensorrt", engines=folder)  # builds ONNX Runtime's own, which --device takes
    click.echo(f"s2ap-defend serve MODEL --device tensorrt --engines {harmless(str(folder))} begins with them")
