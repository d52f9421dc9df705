"""`s2ap-defend verify`: whether a model file can be relied on, and where it runs here."""

from pathlib import Path
from typing import Literal

import click
import orjson
from rich.console import Console

from s2ap_defend.commands.options import model_argument
from s2ap_defend.engines import Device
from s2ap_defend.tables import foreign, harmless, plain_table, print_table
from s2ap_defend.verification import Check, Verification

NOT_SOUND = 1


@click.command()
@model_argument
@click.option(
    "--device",
    "devices",
    multiple=True,
    type=click.Choice(["cpu", "cuda", "tensorrt"]),
    default=("cpu",),
    show_default=True,
    help="Where the file must run on this machine; may be given several times.",
)
@click.option("--key", type=click.Path(path_type=Path), help="The signer's public key, a PEM file; extra [signing].")
@click.option("--signature", type=click.Path(path_type=Path), help="The signature; MODEL.sig by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def verify(
    model: Path,
    devices: tuple[Literal["cpu", "cuda", "tensorrt"], ...],
    key: Path | None,
    signature: Path | None,
    as_json: bool,
) -> int:
    """Check a model file in full: format, hashes, stages, golden answers, and where it runs here.

    Exit code 0: it can be relied on. 1: something failed. 2: it could not be looked at.
    """
    from s2ap_defend.model_file import check_there
    from s2ap_defend.verification.signature import check_signature, signature_path
    from s2ap_defend.verification.verify import verify_file

    if signature is not None and key is None:
        raise click.UsageError("--signature needs --key, the signer's public key")
    needed: tuple[Device, ...] = devices
    check_there(model)
    place = signature_path(model) if signature is None else signature
    signed = None
    if key is not None:
        signed = check_signature(model, key, place)
    elif place.is_file():
        signed = Check("signature", "skipped", f"{place} lies there; --key PUBLIC.pem checks it")
    found = verify_file(model, needed=needed, signature=signed)
    if as_json:
        click.echo(orjson.dumps(_as_json(model, found), option=orjson.OPT_INDENT_2).decode())
    else:
        _print(model, found, Console())
    return 0 if found.sound else NOT_SOUND


def _as_json(model: Path, found: Verification) -> dict[str, object]:
    return {
        "path": str(model),
        "sound": found.sound,
        "golden": found.golden,
        "images": found.images,
        "checks": [{"name": one.name, "state": one.state, "detail": one.detail} for one in found.checks],
        "devices": [{"device": one.device, "runs": one.runs, "detail": one.detail} for one in found.places],
    }


def _print(model: Path, found: Verification, console: Console) -> None:
    checks = plain_table("", "", "", title=harmless(str(model)))
    checks.show_header = False
    checks.columns[2].no_wrap = False
    for one in found.checks:
        checks.add_row(one.state, one.name, foreign(one.detail))
    print_table(checks, console)
    if found.places:
        places = plain_table("device", "", "", title="On this machine")
        places.columns[2].no_wrap = False
        for place in found.places:
            places.add_row(place.device, "runs" if place.runs else "does not run", foreign(place.detail))
        print_table(places, console)
    failed = sum(one.state == "failed" for one in found.checks)
    said = "the file can be relied on" if found.sound else f"{failed} of {len(found.checks)} checks failed"
    console.print(f"{harmless(str(model))}: {said}", markup=False, highlight=False, soft_wrap=True)
