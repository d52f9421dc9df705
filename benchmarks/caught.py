"""A picture of attacked images, and what the classifier inside a file and the file itself make of them.

    python benchmarks/caught.py fashion --recipe fashion --data FOLDER [--output docs/caught.png]

The first test images, one a class, that both answer rightly and that PGD on the classifier alone fools. A second attack
on the same images knows the whole file: it differentiates the answer and the evidence.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import data_overrides

from s2ap_defend import DefendedClassifier
from s2ap_defend.errors import DefendError, RecipeError
from s2ap_defend.files import check_writable
from s2ap_defend.model_file import open_model_file
from s2ap_defend.types import Float32, Int64, Verdicts
from s2ap_train.attacks.pgd import pgd
from s2ap_train.data import ImageSet
from s2ap_train.recipe import load_recipe
from s2ap_train.twin import Twin
from s2ap_train.views.module import DefendedModule

SHOWN, TRIED, STEPS = 5, 200, 40


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--recipe", default="fashion", show_default=True, help="Whose test images are attacked, with its eps.")
@click.option("--data", multiple=True, type=click.Path(path_type=Path), help="Where the recipe's data lies.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("docs/caught.png"), show_default=True)
def main(model: Path, recipe: str, data: tuple[Path, ...], output: Path) -> None:
    """Attack some test images twice and draw them."""
    try:
        check_writable(output)
        settings = load_recipe(recipe, data_overrides(data))
        test = settings.load_data().test.subset(slice(0, TRIED))
        rows = attacked(model, test, settings.eps)
    except DefendError as error:
        raise click.ClickException(str(error)) from error
    draw(rows, test.labels, output)
    print(f"{output}: {len(rows['clean'][0])} images, l_inf {settings.eps:g}, PGD of {STEPS} steps")


def attacked(model: Path, test: ImageSet, eps: float) -> dict[str, tuple[Float32, Verdicts, Int64]]:
    """Images [n, C, H, W], verdicts and rows of the test set [n]: clean, and after each attack.

    Raises:
        ModelFileError: If the file cannot be used.
        RecipeError: If the first images hold none that is answered rightly and fools the classifier.
    """
    file, served = open_model_file(model), DefendedClassifier.load(model)
    twin = Twin.from_file(file)
    labels = torch.from_numpy(test.labels)
    x = torch.from_numpy(test.images)

    def attack(network: Any) -> Float32:  # noqa: ANN401 - any function of images
        generator = torch.Generator().manual_seed(0)
        found = pgd(network, x, labels, eps=eps, steps=STEPS, step_size=eps / 8, generator=generator)
        return found.numpy()

    alone, whole = attack(twin.classify), attack(DefendedModule(twin, flag=True).eval())
    clean, fooled = served(test.images), served(alone)
    right = (clean.label == test.labels) & (clean.base_label == test.labels) & ~clean.adversarial
    candidates = np.flatnonzero(right & (fooled.base_label != test.labels))
    if not len(candidates):
        raise RecipeError(f"of {len(test)} test images none is answered rightly and fools the classifier under attack")
    _, first = np.unique(test.labels[candidates], return_index=True)
    rows = candidates[np.sort(first)][:SHOWN]
    images = {"clean": test.images, "attack on the classifier": alone, "attack on the whole file": whole}
    return {name: (found[rows], served(found[rows]), rows) for name, found in images.items()}


def draw(found: dict[str, tuple[Float32, Verdicts, Int64]], labels: Int64, output: Path) -> None:
    """Write the picture; green is a right label or a flag, red a wrong label without one."""
    columns = max(len(rows) for _, _, rows in found.values())
    figure = Figure(figsize=(2.1 * columns, 2.7 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(found), columns, squeeze=False)
    for line, (name, (images, verdicts, rows)) in zip(axes, found.items(), strict=True):
        for i, axis in enumerate(line):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.imshow(np.squeeze(images[i].transpose(1, 2, 0)), cmap="gray", vmin=0, vmax=1)
            safe = verdicts.adversarial[i] or verdicts.label[i] == labels[rows[i]]
            flag = "flagged" if verdicts.adversarial[i] else "not flagged"
            text = f"classifier: {verdicts.base_label[i]}\nfile: {verdicts.label[i]}, {flag}"
            axis.set_xlabel(text, color="tab:green" if safe else "tab:red", fontsize=8)
        line[0].set_ylabel(name, fontsize=9)
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
