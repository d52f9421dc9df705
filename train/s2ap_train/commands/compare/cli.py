"""`s2ap-defend compare`; light to import, the work is imported when it is asked for."""

from pathlib import Path

import click
import orjson
from rich.console import Console


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for the pictures (PNG) and one HTML page."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write all figures to this file as well.")
@click.option(
    "--baseline",
    metavar="METHOD",
    help="Compare every method with this one, instead of S2AP with the method that it plugs into.",
)
def compare(folders: tuple[Path, ...], output: Path | None, json_file: Path | None, baseline: str | None) -> None:
    """Compare pruning runs: accuracy, robustness, sharpness and stability, with paired differences over seeds.

    DIR is a folder that `s2ap-defend prune` wrote, or one that holds such folders. Runs that differ in their seed only
    are averaged. Runs of different data, or under different attacks, are refused.
    """
    from s2ap_defend.files import check_writable, replace_file
    from s2ap_train.commands.compare.comparison import compare_runs
    from s2ap_train.commands.compare.report import print_comparison
    from s2ap_train.commands.compare.runs import find_runs

    console = Console()
    if json_file is not None:
        check_writable(json_file)
    if output is not None:
        from s2ap_train.commands.compare.page import FILES

        for name in FILES:
            check_writable(output / name)
    comparison = compare_runs(find_runs(folders), baseline=baseline)
    print_comparison(comparison, console)
    if json_file is not None:
        replace_file(json_file, orjson.dumps(comparison.to_json(), option=orjson.OPT_INDENT_2))
    if output is not None:
        from s2ap_train.commands.compare.page import write_pages

        for path in write_pages(comparison, output):
            console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
