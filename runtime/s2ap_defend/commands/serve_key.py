"""`s2ap-defend serve-key`: an API key for the inference server."""

from pathlib import Path

import click

from s2ap_defend.tables import harmless


@click.command("serve-key")
@click.argument("name")
@click.option("--rights", default="infer", show_default=True, help="Some of infer, evidence and admin, by commas.")
@click.option("--images-per-second", type=float, help="How many images it may ask about in the long run.")
@click.option("--burst", type=int, help="How many images it may ask about at once; needed with --images-per-second.")
@click.option("--keys", type=click.Path(path_type=Path), help="Add it to this file, which is made where it is missing.")
def serve_key(name: str, rights: str, images_per_second: float | None, burst: int | None, keys: Path | None) -> None:
    """Make an API key for the server, and print it once and its entry in the keys file.

    The entry, which has the key's hash, goes into the file or to standard output; the key, which is stored nowhere, to
    standard error.
    """
    from s2ap_defend.serve.keys import add_key, hash_key, new_key, parse_entry, write_entry

    token = new_key()
    limits = {"images_per_second": images_per_second, "burst": burst}
    entry = {
        "name": name,
        "sha256": hash_key(token.encode()).hex(),
        "rights": [right.strip() for right in rights.split(",") if right.strip()],
        **{field: value for field, value in limits.items() if value is not None},
    }
    key = parse_entry(entry, "serve-key")
    if keys is None:
        click.echo(write_entry(key))
    else:
        add_key(keys, key)
        click.echo(f"added {name} to {harmless(str(keys))}")
    click.echo(f"The key of {name}, which is shown only now and stored nowhere:\n{token}", err=True)
