"""`s2ap-defend sign`: the signature of a model file, by which others know whose it is."""

from pathlib import Path

import click

from s2ap_defend.commands.options import model_argument
from s2ap_defend.tables import harmless


@click.command()
@model_argument
@click.option("--key", type=click.Path(path_type=Path), required=True, help="Your private key, a PEM file.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The signature to write; MODEL.sig by default.")
def sign(model: Path, key: Path, output: Path | None) -> None:
    """Sign a model file with a private key; `verify --key` with the public one says whether a file is that one.

    Needs the extra [signing]. Elliptic-curve keys, as openssl makes them; nothing is fetched or sent.
    """
    from s2ap_defend.model_file import open_model_file
    from s2ap_defend.verification.signature import sign_file, signature_path

    open_model_file(model)
    signature = signature_path(model) if output is None else output
    sign_file(model, key, signature)
    click.echo(f"wrote {harmless(str(signature))}")
