"""`s2ap-defend export`: a model file as others' servers want it."""

from pathlib import Path
from typing import Literal

import click

from s2ap_defend.commands.options import model_argument
from s2ap_defend.tables import harmless


@click.command()
@model_argument
@click.option(
    "--triton",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Write a model repository for NVIDIA's Triton Inference Server here.",
)
@click.option("--name", help="Of the model there; by default the stem of MODEL.")
@click.option("--max-batch", type=click.IntRange(1), default=64, show_default=True, help="Images of a batch.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where Triton runs it."
)
@click.option("--expose-evidence", is_flag=True, help="Give all outputs to clients: an oracle for attackers.")
def export(
    model: Path, folder: Path, name: str | None, max_batch: int, device: Literal["cpu", "cuda"], expose_evidence: bool
) -> None:
    """Write a model repository for Triton: the classifier in the python backend, the plain file in onnxruntime's.

    Triton is not needed here; where it runs the python model, s2ap-defend must be installed.
    """
    from s2ap_defend.model_file import open_model_file
    from s2ap_defend.triton.repository import write_repository

    written = write_repository(
        open_model_file(model), folder, name=name, max_batch=max_batch, device=device, evidence=expose_evidence
    )
    for place in written:
        click.echo(f"wrote {harmless(str(place))}")
