"""`make demo`: harden the digits, then watch clean and attacked ones go through the file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from s2ap_defend.classifier import DefendedClassifier
from s2ap_defend.commands.main import run
from s2ap_defend.model_file import open_model_file
from s2ap_defend.progress import Reporter
from s2ap_defend.tables import foreign, plain_table, print_table
from s2ap_defend.types import Float32, Int64, Verdicts
from s2ap_export.commands.outputs import work_folder

if TYPE_CHECKING:
    from s2ap_train.data import ImageSet

SHOWN = 8


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/model.onnx"), show_default=True)
def demo(output: Path) -> None:
    """Harden the digits, classify clean and attacked ones, and say how to serve the file."""
    from s2ap_export.hardening.harden import harden
    from s2ap_train.adaptive.systems import BareSystem
    from s2ap_train.attacks.oblivious import pgd
    from s2ap_train.recipe import hardening_recipe
    from s2ap_train.recipe.text import read_recipe
    from s2ap_train.redteam.report.console import print_summary
    from s2ap_train.redteam.report.page import write_page
    from s2ap_train.twin import Twin

    console = Console()
    tables = read_recipe("digits", ())
    recipe = hardening_recipe(tables, "digits")
    folder = work_folder(output)
    hardened = harden(recipe, output, folder, Reporter(console), overwrite=True, tables=tables)
    print_summary(hardened.evaluation, console)
    report = output.with_name("report.html")
    write_page(hardened.evaluation, report)

    data = recipe.load_data().test
    file = open_model_file(output)
    attacked = pgd(Twin.from_file(file).classify, data, eps=recipe.eps, seed=recipe.seed)
    classifier = DefendedClassifier.load(output)
    bare = BareSystem(file)
    before, after = bare(data.images, data.labels).label, bare(attacked, data.labels).label
    fooled = np.flatnonzero((before == data.labels) & (after != data.labels))
    shown = fooled[:SHOWN]
    some = data.subset(shown)
    console.print(f"\nDigits that PGD turns against the bare classifier (l_inf {recipe.eps:g}), before the attack:")
    print_table(_table(some.labels, before[shown], classifier(some.images), classifier.classes), console)
    console.print("The same digits, attacked:")
    print_table(_table(some.labels, after[shown], classifier(attacked[shown]), classifier.classes), console)
    console.print(_summary(data.labels[fooled], classifier(attacked[fooled]), len(data)), highlight=False)
    folder = output.parent / "demo"
    _save(folder, some, attacked[shown])
    console.print(
        f"\nThe defended model is {output}. Serve it and drop the images of {folder} on its page:\n"
        f"    .venv/bin/s2ap-defend serve {output} --expose-evidence      then open http://127.0.0.1:8000\n"
        f"What the attacks found, with pictures, is in {report}. Attack it with everything that is known:\n"
        f"    .venv/bin/s2ap-defend evaluate {output} --attacks standard --report standard.html",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _table(truth: Int64, bare: Int64, verdicts: Verdicts, classes: Sequence[str]) -> Table:
    table = plain_table("digit", "bare", "verdict", "final", "members", "disagree", "what happened")
    for i in range(len(truth)):
        label, flagged = int(verdicts.label[i]), bool(verdicts.adversarial[i])
        table.add_row(
            foreign(classes[truth[i]]),
            foreign(classes[bare[i]]),
            "[red]adversarial[/red]" if flagged else "[green]clean[/green]",
            "none" if verdicts.abstained[i] else foreign(classes[label]),
            str(verdicts.members_used[i]),
            f"{verdicts.label_change_rate[i]:.0%}",
            "no answer" if verdicts.abstained[i] else _story(flagged, label == truth[i], bare[i] == truth[i]),
        )
    return table


def _summary(truth: Int64, verdicts: Verdicts, total: int) -> str:
    right, flagged, abstained = verdicts.label == truth, verdicts.adversarial, verdicts.abstained
    unanswered = f", does not answer {int(abstained.sum())}" if abstained.any() else ""
    right, wrong = right & ~abstained, ~right & ~abstained
    return (
        f"Of {total} test digits PGD fools the bare classifier on {len(truth)}. Of these the defended file labels "
        f"{int((right & ~flagged).sum())} rightly as clean, flags and corrects {int((right & flagged).sum())}, flags "
        f"with a wrong label {int((wrong & flagged).sum())}{unanswered}, and is fooled by "
        f"{int((wrong & ~flagged).sum())}."
    )


def _story(flagged: bool, right: bool, bare_right: bool) -> str:
    if flagged:
        end = ("right" if bare_right else "corrected") if right else "wrong"
        return f"flagged, label {end}"
    if right:
        return "right" if bare_right else "right, though the bare one is fooled"
    return "[bold red]fooled[/bold red]"


def _save(folder: Path, data: ImageSet, attacked: Float32) -> None:
    """PNG files for the page: 8-bit, so an attacked image loses what lies below half a grey level."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in (("clean", data.images), ("attacked", attacked)):
        for i, image in enumerate(images):
            Image.fromarray(np.uint8(np.rint(image[0] * 255))).save(folder / f"{i}-{name}-{data.labels[i]}.png")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], demo, "python -m s2ap_export.commands.demo"))
