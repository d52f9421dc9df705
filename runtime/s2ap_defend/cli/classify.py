"""`s2ap-defend classify`: verdicts for image files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from s2ap_defend.cli.options import device_option
from s2ap_defend.engines import Device
from s2ap_defend.tables import plain_table
from s2ap_defend.types import Float32, Verdicts

if TYPE_CHECKING:
    from s2ap_defend.classifier import DefendedClassifier

ROWS_PER_BATCH = 256


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of a table.")
@device_option
def classify(model: Path, images: tuple[Path, ...], as_json: bool, device: Device) -> None:
    """Purify, test and label images: PNG, JPEG, .npy or .npz of float32 [N, C, H, W] in [0, 1]."""
    from s2ap_defend.classifier import DefendedClassifier
    from s2ap_defend.images import load_images

    classifier = DefendedClassifier.load(model, device=device)
    batches = [(path, classifier.validate(load_images(path, classifier.input_shape))) for path in images]
    rows = [
        _describe(classifier, verdicts, i, path, first + i)
        for path, batch in batches
        for first, part in _parts(batch)
        for verdicts in [classifier(part)]
        for i in range(len(verdicts))
    ]
    if as_json:
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2).decode())
        return
    Console().print(_table(rows))


def _parts(batch: Float32) -> list[tuple[int, Float32]]:
    return [(first, batch[first : first + ROWS_PER_BATCH]) for first in range(0, len(batch), ROWS_PER_BATCH)]


def _describe(classifier: "DefendedClassifier", verdicts: Verdicts, i: int, path: Path, index: int) -> dict[str, Any]:
    label = int(verdicts.label[i])
    base = int(verdicts.base_label[i])
    return {
        "file": str(path),
        "index": index,
        "label": label,
        "class": classifier.classes[label],
        "adversarial": bool(verdicts.adversarial[i]),
        "abstained": bool(verdicts.abstained[i]),
        "base_label": base,
        "base_class": classifier.classes[base],
        "probability": float(verdicts.probabilities[i, base]),
        "label_change_rate": float(verdicts.label_change_rate[i]),
        "log_likelihood_ratio": float(verdicts.log_likelihood_ratio[i]),
        "members_used": int(verdicts.members_used[i]),
        "votes": verdicts.votes[i].tolist(),
        "reconstruction_error": float(verdicts.reconstruction_error[i]),
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    table = plain_table("image", "verdict", "label", "classifier", "members", "disagree", "nats")
    for row in rows:
        name = Path(row["file"]).name + (f" [{row['index']}]" if row["index"] or _repeats(rows, row) else "")
        table.add_row(
            name,
            _verdict(row),
            "no answer" if row["abstained"] else row["class"],
            f"{row['base_class']} ({row['probability']:.0%})",
            str(row["members_used"]),
            f"{row['label_change_rate']:.0%}",
            f"{row['log_likelihood_ratio']:+.2f}",
        )
    return table


def _verdict(row: dict[str, Any]) -> str:
    if row["adversarial"]:
        return "[red]adversarial[/red]"
    return "[yellow]undecided[/yellow]" if row["abstained"] else "[green]clean[/green]"


def _repeats(rows: list[dict[str, Any]], row: dict[str, Any]) -> bool:
    return [other["file"] for other in rows].count(row["file"]) > 1
